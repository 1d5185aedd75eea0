"""Generate from sources: texts to translate or summarise, with a model that was finetuned to."""

from __future__ import annotations

from llmctl.tasks.generation import GenerateConfig, Prompt, TextGenerator
from llmctl.tasks.seq2seq.batches import append_eos

SOURCES = 64
"""Sources that are read together by default: they are short, as is what is written from them."""


class FromSources(TextGenerator):
    """A model that writes a text from each prompt, its source."""

    from_sources = True

    @classmethod
    def default_batch(cls, config: GenerateConfig) -> int:
        return SOURCES * config.rows_each

    def encode(self, prompt: Prompt) -> list[int]:
        """A source's ids as in finetuning: cut to what the model was trained on, with the text's
        end behind."""
        folder = self.model.folder
        start, end = folder.boundaries
        most = folder.max_source
        ids = self.tokenizer.encode(prompt.text)
        if len(ids) >= most:
            self.note_once(
                f"{prompt.source} has {len(ids)} tokens and is cut to {most - 1}, as in finetuning"
            )
        prefix = folder.writes_from_source == "prefix"
        return [*([start] if prefix else []), *append_eos(ids, end, most)]
