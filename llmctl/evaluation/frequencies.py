"""What a language model has to beat to have learned from context: guesses by frequency.

The unigram guess knows how often each token comes in the training text, the bigram guess also which
token comes before: Witten and Bell 1991's mixture of how often each followed it and the unigram's
probability. Both answer for each token of the validation text. A masked model sees both sides of
a token, so that it has more than either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.shards.files import ShardReader

Ints = NDArray[np.int64]

MOST_TRAINING, MOST_VALIDATION = 1_000_000, 100_000
"""Tokens that are counted and that are answered for: a fraction of a second."""


@dataclass(frozen=True)
class Guesses:
    """Losses in nats a token, and shares of tokens of which the likeliest is right."""

    unigram_loss: float
    unigram_accuracy: float
    bigram_loss: float
    bigram_accuracy: float

    def document(self) -> dict[str, float]:
        """The figures as JSON values."""
        return asdict(self)


def guesses(
    train: ShardReader, validation: ShardReader, vocab_size: int, *, end: int | None = None
) -> Guesses | None:
    """What guessing by frequency comes to; None where one of the texts is empty.

    end: the token behind each document, where the model is asked for it too.
    """
    before_N, token_N = _pairs(train, vocab_size, MOST_TRAINING, end)
    asked_before_M, asked_M = _pairs(validation, vocab_size, MOST_VALIDATION, end)
    if not len(token_N) or not len(asked_M):
        return None
    # One more for each, so that no token is impossible.
    counts_V = np.bincount(token_N, minlength=vocab_size)
    unigram_V = (counts_V + 1.0) / (counts_V.sum() + vocab_size)
    # A pair as one number. A document's first token has the number of no token before it.
    pairs, times = np.unique(before_N * vocab_size + token_N, return_counts=True)
    contexts, followers = np.divmod(pairs, vocab_size)
    seen_C = np.bincount(contexts, weights=times, minlength=vocab_size + 1)
    kinds_C = np.bincount(contexts, minlength=vocab_size + 1)
    places = np.searchsorted(pairs, codes := asked_before_M * vocab_size + asked_M)
    places = np.minimum(places, len(pairs) - 1)
    times_M = np.where(pairs[places] == codes, times[places], 0)
    seen_M, kinds_M = seen_C[asked_before_M], kinds_C[asked_before_M]
    # What a context was not followed by has the share of how often something new followed.
    above_M = times_M + np.maximum(kinds_M, 1) * unigram_V[asked_M]
    bigram_M = above_M / (seen_M + np.maximum(kinds_M, 1))
    likeliest_C = np.full(vocab_size + 1, unigram_V.argmax())
    order = np.lexsort((-times, contexts))
    first = np.unique(contexts[order], return_index=True)[1]
    likeliest_C[contexts[order][first]] = followers[order][first]
    return Guesses(
        unigram_loss=float(-np.log(unigram_V[asked_M]).mean()),
        unigram_accuracy=float((asked_M == unigram_V.argmax()).mean()),
        bigram_loss=float(-np.log(bigram_M).mean()),
        bigram_accuracy=float((asked_M == likeliest_C[asked_before_M]).mean()),
    )


def _pairs(reader: ShardReader, vocab_size: int, most: int, end: int | None) -> tuple[Ints, Ints]:
    """The first tokens of a split, and the one before each: ``vocab_size`` before a document's."""
    parts = list(_documents(reader, most, end))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    before = [np.concatenate(([vocab_size], part[:-1])) for part in parts]
    return np.concatenate(before), np.concatenate(parts)


def _documents(reader: ShardReader, most: int, end: int | None) -> Iterator[Ints]:
    """Documents until there are enough tokens; the last of them is cut."""
    for document in range(len(reader)):
        if most <= 0:
            return
        ids = reader.tokens(document, 0, most).astype(np.int64)
        if end is not None:
            ids = np.append(ids, end)
        if len(ids):
            yield ids
        most -= len(ids)
