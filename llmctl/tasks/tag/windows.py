"""A text as the windows that a model reads it by, and the piece that answers for each word.

A word's tag is that of its first piece (Devlin et al. 2018, §5.3). A text that is too long for the
model is read by windows that overlap by half, and each word is told by the one in which it has most
text around it; so it is in training too.

N pieces of a text, W words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.tagged import TaggedText
from llmctl.tokenizers import Tokenizer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Pieces with the special tokens around them, and the words that they tell."""

    ids: Ints
    places: Ints
    """Where the first pieces of these words stand in ``ids``."""
    words: Ints
    """Their numbers in the text."""


def first_pieces(tokenizer: Tokenizer, text: TaggedText) -> tuple[Ints, Ints]:
    """The pieces (N,) of a text, and (W,) which of them each word begins with; -1 for a word that
    has none of its own: one piece begins it and the word before, or its characters come to nothing.
    """
    ids_N, begins_N = tokenizer.encode_offsets(text.text)
    begins_W, ends_W = np.asarray(text.words, dtype=np.int64).reshape(-1, 2).T
    first_W = np.searchsorted(begins_N, begins_W, side="right") - 1
    # A piece may begin with the space before its word, never within the word before that.
    before_W = np.concatenate([[0], ends_W[:-1]])
    known_W = first_W >= 0
    own_W = known_W & (begins_N[np.maximum(first_W, 0)] >= before_W) if len(ids_N) else known_W
    own_W[1:] &= first_W[1:] > first_W[:-1]
    return ids_N.astype(np.int64), np.where(own_W, first_W, -1)


def windows_of(tokenizer: Tokenizer, text: TaggedText, max_length: int) -> Iterator[Window]:
    """The windows of a text, special tokens included in ``max_length``."""
    ids_N, first_W = first_pieces(tokenizer, text)
    before, after = tokenizer.layout.before, tokenizer.layout.after
    room = max(1, max_length - len(before) - len(after))
    step = max(1, room // 2)
    begins = np.arange(0, max(1, len(ids_N) - room + step), step)
    words_W = np.flatnonzero(first_W >= 0)
    pieces_W = first_W[words_W]
    # The window whose middle is nearest: the one with most on the piece's poorer side.
    last = len(begins) - 1
    chosen_W = np.clip(np.rint((pieces_W - (room - 1) / 2) / step), 0, last).astype(np.int64)
    for number, begin in enumerate(begins.tolist()):
        own = chosen_W == number
        ids = np.concatenate([before, ids_N[begin : begin + room], after]).astype(np.int64)
        yield Window(ids, pieces_W[own] - begin + len(before), words_W[own])
