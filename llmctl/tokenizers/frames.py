"""The special tokens around a source and the target that is written from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """What stands around sources and targets."""

    before: tuple[int, ...]
    """Before a source."""
    after: tuple[int, ...]
    """Behind a source."""
    start: tuple[int, ...]
    """What a target's writing starts with: the first of it is never predicted."""
    end: tuple[int, ...]
    """Behind a target."""

    def source(self, ids: Sequence[int], most: int) -> list[int]:
        """A source with what is around it, cut to so many tokens."""
        room = most - len(self.before) - len(self.after)
        return [*self.before, *ids[: max(room, 0)], *self.after]

    def target(self, ids: Sequence[int], most: int) -> list[int]:
        """A target with what is around it, cut to so many tokens behind its first."""
        room = most - len(self.start) + 1 - len(self.end)
        return [*self.start, *ids[: max(room, 0)], *self.end]

    def source_cut(self, length: int, most: int) -> bool:
        """Whether a source of so many tokens is cut."""
        return length + len(self.before) + len(self.after) > most

    def target_cut(self, length: int, most: int) -> bool:
        """Whether a target of so many tokens is cut."""
        return length + len(self.start) - 1 + len(self.end) > most
