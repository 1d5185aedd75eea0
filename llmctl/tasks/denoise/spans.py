"""Spans that a model writes behind their sentinels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.generation import Prompt
from llmctl.tasks.seq2seq.generate import FromSources


class FromIds(FromSources):
    """Writes from sources that are ids already, and are kept: prompts are their numbers."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.sources: list[list[int]] = []

    def encode(self, prompt: Prompt) -> list[int]:
        return self.sources[int(prompt.text)]


def spans_in(ids: Sequence[int], sentinels: Sequence[int], end: int) -> dict[int, tuple[int, ...]]:
    """What stands behind each sentinel of a target, until the next or the end; what is before the
    first is left out."""
    known, found = set(sentinels), dict[int, list[int]]()
    current: list[int] = []
    for token in ids:
        if token in known:
            current = found.setdefault(token, [])
        elif token != end:
            current.append(token)
    return {sentinel: tuple(span) for sentinel, span in found.items()}
