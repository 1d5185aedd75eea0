"""Generate with a language model: it goes on from prompts."""

from __future__ import annotations

from llmctl.errors import InputError
from llmctl.formats.description import FIM
from llmctl.inference.decoder import CausalDecoder, DecoderRunner
from llmctl.inference.weights import prepare
from llmctl.tasks.causal_lm.fim import fim_tokens, infilling_prompt
from llmctl.tasks.generation import GenerateConfig, Prompt, TextGenerator
from llmctl.tasks.opened import OpenedModel
from llmctl.training.precision import choose_device


class Continuation(TextGenerator):
    """A model that writes on behind prompts."""

    @staticmethod
    def decoder(model: OpenedModel, config: GenerateConfig, rows: int) -> DecoderRunner:
        folder = model.folder
        lm = folder.anywhere().causal_lm().to(choose_device(config.device, "--device"))
        head = prepare(lm, config.dtype, rows=rows, kernels=config.kernels)
        return CausalDecoder(lm, longest=folder.max_length, head=head, tokenizer=folder.tokenizer)

    def encode(self, prompt: Prompt) -> list[int]:
        before, ids = self.tokenizer.layout.before, self.tokenizer.encode(prompt.text)
        if prompt.suffix is None:
            ids = [*before, *ids]
        else:
            suffix = self.tokenizer.encode(prompt.suffix)
            ids = infilling_prompt(self._fim_tokens(), before, ids, suffix)
        if not ids and (around := self.tokenizer.boundaries) is not None:
            ids = [around[0]]
        if not ids:
            raise InputError(
                f"{prompt.source} is empty, and the tokenizer has no token for a document's start "
                "to begin from; write a few words"
            )
        most, new = self.max_positions, self.config.max_new_tokens
        if most is not None and len(ids) >= most:
            raise InputError(
                f"{prompt.source} has {len(ids)} tokens and the model takes {most}, one of them "
                "new; shorten it"
            )
        if most is not None and len(ids) + new > most:
            self.note_once(
                f"{prompt.source}: the model's context of {most} tokens has room for "
                f"{most - len(ids)} more, not for {new}"
            )
        return ids

    def _fim_tokens(self) -> tuple[int, int, int]:
        """The tokens around a prefix and a suffix. Raises InputError where the model has not
        learned what they mean, as far as its folder tells."""
        tokens, share = fim_tokens(self.tokenizer), self.model.folder.fields.get(FIM)
        if self.model.kind == "ngram":
            raise InputError(
                f"--suffix: {self.model.name} is an n-gram model, which knows what comes before "
                "alone; leave --suffix out"
            )
        if tokens is None or share == 0:
            lacks = "was pretrained without it" if tokens else "its tokenizer has no tokens for it"
            raise InputError(
                f"--suffix: {self.model.name} has not learned to fill in the middle ({lacks}); "
                "leave --suffix out, or take a model that has: llmctl pretrain … --set "
                "objective.fim=0.5"
            )
        if share is None:
            self.note_once(
                f"{self.model.name} has the tokens of fill-in-the-middle; nothing in its folder "
                "says whether it has learned what they mean"
            )
        return tokens
