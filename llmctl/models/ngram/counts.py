"""How often each n-gram occurs: exact, in time that sorting takes.

An n-gram of order k is a word behind a context, itself an n-gram of order k − 1. The context's
place among the sorted n-grams of its order and the word make one 64-bit number,

    key = place of the context · V + word

so that no two n-grams share one, and sorting the keys of all places in the text puts equal n-grams
together. The order above goes on from the places found. Blocks of text are sorted one by one, and
merged: above the tokens themselves, memory goes with the distinct n-grams of a block.

T tokens, D documents, V vocabulary, N n-grams of an order, C their contexts: the n-grams of the
order below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOWHERE = -1
"""The place of an n-gram that would reach back over the start of its document."""


@dataclass(frozen=True)
class TokenBlock:
    """Whole documents end to end, each with the tokens at its start and end."""

    tokens: NDArray[Any]
    """(T,) ids."""
    starts: NDArray[np.int64]
    """(D,): where each document's first token is; it is given, all others are predicted."""


@dataclass(frozen=True)
class Level:
    """The n-grams of one order, sorted by context, then word.

    Those of order 1 are the whole vocabulary, behind one context that is empty, whether they
    occur or not.
    """

    first: NDArray[np.int64]
    """(C + 1,): where the words behind each context begin; the last entry is N."""
    word: NDArray[Any]
    """(N,) the last word of each."""
    count: NDArray[np.int64]
    """(N,)."""
    suffix: NDArray[Any]
    """(N,): the place, in the order below, of each without its first word."""

    def __len__(self) -> int:
        return len(self.word)

    def sum(self, value_N: NDArray[Any]) -> NDArray[Any]:
        """Sums over the words behind each context, (C,)."""
        sums_C = np.zeros(len(self.first) - 1, dtype=value_N.dtype)
        some_C = self.first[1:] > self.first[:-1]
        # A sum that begins where the next context does would be that context's first entry.
        sums_C[some_C] = np.add.reduceat(value_N, self.first[:-1][some_C])
        return sums_C

    def spread(self, value_C: NDArray[Any]) -> NDArray[Any]:
        """The context's value at each of its n-grams, (N,)."""
        return np.repeat(value_C, np.diff(self.first))


def count_ngrams(
    blocks: Sequence[TokenBlock],
    order: int,
    vocab_size: int,
    progress: Callable[[int], None] = lambda order: None,
) -> list[Level]:
    """The n-grams of orders 1 to ``order`` that end in a predicted token, with their counts.

    ``progress`` is told of each order that is done.
    """
    levels = [_single_words(blocks, vocab_size)]
    progress(1)
    # No more n-grams of an order than tokens: half the memory wherever 32 bits do.
    total = sum(len(block.tokens) for block in blocks)
    dtype = np.dtype(np.int32 if max(total, vocab_size) < 1 << 31 else np.int64)
    places = [block.tokens.astype(dtype) for block in blocks]
    for current in range(2, order + 1):
        levels.append(_one_longer(blocks, places, len(levels[-1]), vocab_size))
        progress(current)
    return levels


def _single_words(blocks: Sequence[TokenBlock], vocab_size: int) -> Level:
    count = np.zeros(vocab_size, dtype=np.int64)
    for block in blocks:
        count += np.bincount(block.tokens, minlength=vocab_size)
        count -= np.bincount(block.tokens[block.starts], minlength=vocab_size)
    words = np.arange(vocab_size, dtype=np.min_scalar_type(vocab_size - 1))
    return Level(np.array([0, vocab_size]), words, count, np.zeros(vocab_size, dtype=np.int64))


def _one_longer(
    blocks: Sequence[TokenBlock], places: list[NDArray[Any]], contexts: int, vocab_size: int
) -> Level:
    """The n-grams one word longer than those that end at ``places``: (T,) for each block, which
    become the places of the longer ones."""
    parts = []
    for number, block in enumerate(blocks):
        places[number], *part = _sorted_keys(block, places[number], vocab_size)
        parts.append(part)
    keys = np.sort(np.concatenate([keys for keys, *_ in parts]))
    keys = keys[_heads(keys)]
    count = np.zeros(len(keys), dtype=np.int64)
    suffix = np.empty(len(keys), dtype=places[0].dtype)
    for number, (part_keys, part_count, part_suffix) in enumerate(parts):
        where = np.searchsorted(keys, part_keys).astype(places[number].dtype)
        count[where] += part_count
        suffix[where] = part_suffix
        # NOWHERE is the last entry.
        places[number] = np.append(where, where.dtype.type(NOWHERE))[places[number]]
    context, word = np.divmod(keys, vocab_size)
    first = np.zeros(contexts + 1, dtype=np.int64)
    np.cumsum(np.bincount(context, minlength=contexts), out=first[1:])
    return Level(first, word.astype(np.min_scalar_type(vocab_size - 1)), count, suffix)


def _sorted_keys(
    block: TokenBlock, place_T: NDArray[Any], vocab_size: int
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Places among the block's own keys, those keys in order, their counts and suffixes.

    place_T: of the n-grams one word shorter that end at each token.
    """
    is_inside_T = place_T[:-1] != NOWHERE
    is_inside_T[block.starts[1:] - 1] = False  # what follows is the next document
    before = np.flatnonzero(is_inside_T)
    keys = place_T[before].astype(np.int64)
    keys *= vocab_size
    keys += block.tokens[before + 1]
    order = np.argsort(keys)
    keys, ends = keys[order], before[order] + 1
    heads = _heads(keys)
    count = np.diff(heads, append=len(keys))
    longer_T = np.full_like(place_T, NOWHERE)
    longer_T[ends] = np.repeat(np.arange(len(heads), dtype=place_T.dtype), count)
    return longer_T, keys[heads], count, place_T[ends[heads]]


def _heads(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where, in sorted keys, each begins that differs from the one before it."""
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return np.flatnonzero(new)


def prune(levels: Sequence[Level], kept: Sequence[NDArray[np.bool_]]) -> list[Level]:
    """The levels with the n-grams that are ``kept``, (N,) for each; of one that is, its context
    and its suffix must be too."""
    renumbered = [np.cumsum(keep) - 1 for keep in kept]
    pruned = []
    for number, (level, keep) in enumerate(zip(levels, kept, strict=True)):
        sizes = level.sum(keep.astype(np.int64))
        suffix = level.suffix[keep]
        if number:
            sizes, suffix = sizes[kept[number - 1]], renumbered[number - 1][suffix]
        first = np.zeros(len(sizes) + 1, dtype=np.int64)
        np.cumsum(sizes, out=first[1:])
        pruned.append(
            replace(
                level, first=first, word=level.word[keep], count=level.count[keep], suffix=suffix
            )
        )
    return pruned
