"""Generate from sources: texts to translate or summarise, with a model that was finetuned to."""

from __future__ import annotations

from llmctl.errors import InputError
from llmctl.inference.decoder import DecoderRunner, SourceDecoder
from llmctl.inference.weights import prepare
from llmctl.models.heads.seq2seq import Seq2Seq
from llmctl.tasks.causal_lm.generate import Continuation
from llmctl.tasks.generation import GenerateConfig, Prompt, TextGenerator
from llmctl.tasks.opened import OpenedModel
from llmctl.training.precision import choose_device

SOURCES = 64
"""Sources that are read together by default: they are short, as is what is written from them."""


class FromSources(TextGenerator):
    """A model that writes a text from each prompt, its source."""

    from_sources = True

    @classmethod
    def default_batch(cls, config: GenerateConfig) -> int:
        return SOURCES * config.rows_each

    @staticmethod
    def decoder(model: OpenedModel, config: GenerateConfig, rows: int) -> DecoderRunner:
        folder = model.folder
        if folder.writes_from_source == "prefix":  # both texts in one sequence
            return Continuation.decoder(model, config, rows)
        pair = folder.seq2seq().to(choose_device(config.device, "--device"))
        reader = pair.reader if isinstance(pair, Seq2Seq) else None
        head = prepare(pair.writer, config.dtype, rows=rows, reader=reader, kernels=config.kernels)
        return SourceDecoder(
            pair,
            start=folder.frame.start,
            longest=folder.max_length,
            head=head,
            tokenizer=folder.tokenizer,
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """A source's ids as in finetuning: cut to what the model was trained on, with the text's
        end behind."""
        folder = self.model.folder
        if prompt.suffix is not None:
            raise InputError(
                f"{prompt.source}: a suffix is for a language model that fills in the middle, and "
                f"{self.model.name} writes from sources; leave it out"
            )
        frame, most = folder.frame, folder.max_source
        ids = self.tokenizer.encode(prompt.text, allow_special=folder.writes_from_source is None)
        if frame.source_cut(len(ids), most):
            kept = most - len(frame.source([], most))
            self.note_once(
                f"{prompt.source} has {len(ids)} tokens and is cut to {kept}, as in finetuning"
            )
        prefix = folder.writes_from_source == "prefix"
        return [*(frame.start if prefix else ()), *frame.source(ids, most)]
