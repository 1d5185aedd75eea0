"""Generate with a language model: it goes on from prompts."""

from __future__ import annotations

from llmctl.errors import InputError
from llmctl.tasks.generation import Prompt, TextGenerator


class Continuation(TextGenerator):
    """A model that writes on behind prompts."""

    def encode(self, prompt: Prompt) -> list[int]:
        ids = [*self.tokenizer.layout.before, *self.tokenizer.encode(prompt.text)]
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
