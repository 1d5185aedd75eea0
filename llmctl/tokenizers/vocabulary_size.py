"""Sizes of a vocabulary to learn that don't go with a corpus."""

from __future__ import annotations

from llmctl.errors import InputError


class VocabularyError(InputError):
    """A vocabulary larger than the corpus has pieces for; ``available`` is what it has."""

    def __init__(self, vocab_size: int, available: int) -> None:
        super().__init__(
            f"--vocab-size {vocab_size}: the corpus has only {available} distinct pieces; "
            f"use --vocab-size {available} or less, or give more text"
        )
        self.available = available


class AlphabetError(InputError):
    """A vocabulary too small for the corpus's characters alone; ``needed`` would hold them."""

    def __init__(self, vocab_size: int, needed: int) -> None:
        super().__init__(
            f"--vocab-size {vocab_size}: the corpus's alphabet alone needs {needed} pieces; "
            f"use --vocab-size {needed} or more"
        )
        self.needed = needed


def roomy(needed: int) -> int:
    """A size for an alphabet that the usual one can't hold: a third is left to longer pieces."""
    return -(-3 * needed // 2)
