"""Guesses by frequency, counted again in dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmctl.evaluation.frequencies import MOST_VALIDATION, guesses

V = 6


class Documents:
    """As much of a reader of shards as is asked for."""

    def __init__(self, *documents: Sequence[int]) -> None:
        self._documents = [np.array(document, np.uint16) for document in documents]

    def __len__(self) -> int:
        return len(self._documents)

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> Any:
        return self._documents[document][start:stop]


TRAIN = [[1, 2, 3, 1, 2, 4], [1, 2, 3], [], [5, 1, 2]]
ASKED = [[1, 2, 3, 3], [4, 1], [0]]


@pytest.mark.parametrize("end", [None, 0])
def test_as_counted_by_hand(end: int | None) -> None:
    found = guesses(Documents(*TRAIN), Documents(*ASKED), V, end=end)  # type: ignore[arg-type]
    assert found is not None
    once: Counter[int] = Counter()
    after: dict[int, Counter[int]] = defaultdict(Counter)
    for document in TRAIN:
        for before, token in zip([V, *document], [*document, end][: len(document) + 1]):  # noqa: B905
            if token is not None:
                once[token] += 1
                after[before][token] += 1
    unigram = {t: (once[t] + 1) / (once.total() + V) for t in range(V)}
    best = max(range(V), key=lambda t: (unigram[t], -t))
    losses, hits = ([], []), ([], [])
    for document in ASKED:
        asked = document if end is None else [*document, end]
        for before, token in zip([V, *document], asked):  # noqa: B905
            seen = after[before]
            kinds = max(len(seen), 1)
            bigram = (seen[token] + kinds * unigram[token]) / (seen.total() + kinds)
            likeliest = max(seen, key=lambda t: (seen[t], -t)) if seen else best
            for place, (p, right) in enumerate(
                [(unigram[token], token == best), (bigram, token == likeliest)]
            ):
                losses[place].append(-math.log(p))
                hits[place].append(right)
    assert found.document() == pytest.approx({
        "unigram_loss": np.mean(losses[0]), "unigram_accuracy": np.mean(hits[0]),
        "bigram_loss": np.mean(losses[1]), "bigram_accuracy": np.mean(hits[1]),
    })  # fmt: skip


def test_probabilities_sum_to_one() -> None:
    """Behind a token that was seen, one that wasn't, and at a document's start."""
    train = Documents(*TRAIN)
    for before in ([1], [0], []):
        total = 0.0
        for token in range(V):
            whole = guesses(train, Documents([*before, token]), V)  # type: ignore[arg-type]
            assert whole is not None
            first = guesses(train, Documents(before), V) if before else None  # type: ignore[arg-type]
            loss = whole.bigram_loss * (len(before) + 1)
            total += math.exp(-(loss - (first.bigram_loss if first else 0.0)))
        assert total == pytest.approx(1.0)


def test_nothing_to_tell_and_very_much() -> None:
    assert guesses(Documents(), Documents([1]), V) is None  # type: ignore[arg-type]
    assert guesses(Documents([1]), Documents(), V) is None  # type: ignore[arg-type]
    long = Documents([1, 2] * MOST_VALIDATION, [3])
    found = guesses(long, long, V)  # type: ignore[arg-type]
    assert found is not None
    assert found.bigram_accuracy == 1.0
    assert found.unigram_accuracy == 0.5
