"""Vectors from co-occurrences, against counting by hand and NumPy's singular values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmctl.data.shards import cooccurrence
from llmctl.data.shards.cooccurrence import SMOOTHING, WINDOW, token_vectors

V = 12


class Documents:
    """What is read of shards, from lists."""

    def __init__(self, documents: list[list[int]]) -> None:
        self._documents = [np.asarray(ids, np.uint16) for ids in documents]
        self.document_lengths = np.asarray([len(ids) for ids in documents], np.int64)

    def __len__(self) -> int:
        return len(self._documents)

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint16]:
        return self._documents[document][start:stop]


def vectors(
    documents: list[list[int]], vocab_size: int = V, width: int = V
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return token_vectors(Documents(documents), vocab_size, width)  # type: ignore[arg-type]


def by_hand(documents: list[list[int]]) -> NDArray[np.float64]:
    """The information of all tokens about all, a pair of places at a time."""
    counts = np.zeros((V, V))
    for ids in documents:
        for here, token in enumerate(ids):
            for there, context in enumerate(ids):
                if here != there and abs(here - there) <= WINDOW:
                    counts[token, context] += 1
    contexts = counts.sum(0) ** SMOOTHING
    contexts /= contexts.sum() or 1
    information = np.zeros((V, V))
    for token, context in zip(*np.nonzero(counts), strict=True):
        expected = counts[token].sum() * contexts[context]
        information[token, context] = max(0.0, np.log(counts[token, context] / expected))
    return information


DOCUMENTS = st.lists(st.lists(st.integers(0, V - 1), max_size=90), min_size=1, max_size=6)


@given(documents=DOCUMENTS)
def test_vectors_are_the_scaled_singular_ones_of_the_information(documents: list[list[int]]):
    known, found = vectors(documents)
    left, singular, _ = np.linalg.svd(by_hand(documents))
    # What is neither plainly a direction nor plainly rounding may be either.
    plain = singular > 1e-2 * singular[0]
    assume(not np.any(singular[~plain] > 1e-4 * singular[0]))
    wanted = left * np.where(plain, singular, 0) ** 0.5
    sizes = np.linalg.norm(wanted, axis=1)
    clear = np.flatnonzero(sizes > 0.05 * sizes.max(initial=0)) if singular[0] > 1e-6 else []
    assert set(clear) <= set(known)
    np.testing.assert_allclose([np.square(row).mean() for row in found], 1, rtol=1e-4)
    rows = np.searchsorted(known, clear)
    # Directions have no sign, and ones of a size no order: the angles between tokens have.
    unit = found[rows] / np.linalg.norm(found[rows], axis=1, keepdims=True)
    expected = wanted[clear] / sizes[clear, None] if len(clear) else wanted[:0]
    np.testing.assert_allclose(unit @ unit.T, expected @ expected.T, atol=0.1)


def test_tokens_of_one_subject_point_one_way():
    draw = np.random.default_rng(0)
    subjects = [range(6), range(6, 12)]
    documents = [draw.choice(subjects[n % 2], 30).tolist() for n in range(60)]
    known, found = vectors(documents, width=2)
    assert known.tolist() == list(range(V))
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    angles = unit @ unit.T
    same = (np.arange(V)[:, None] < 6) == (np.arange(V) < 6)
    assert angles[same].min() > 0.9
    assert angles[~same].max() < 0.2


def test_documents_are_no_company_of_one_another():
    known, _ = vectors([[3], [4], [5]])
    assert not len(known)


def test_far_apart_is_no_company():
    middle = [0] * WINDOW
    counts = cooccurrence._company(np.asarray([7, *middle, 8]), np.zeros(WINDOW + 2, int), V)
    near = cooccurrence._company(np.asarray([7, *middle[1:], 8]), np.zeros(WINDOW + 1, int), V)
    # Contexts are in the order of how often they come: 0, then 7, then 8.
    assert (counts[7, 2], counts[8, 1]) == (0, 0)
    assert (near[7, 2], near[8, 1]) == (1, 1)


def test_only_common_tokens_are_contexts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cooccurrence, "CONTEXTS", 2)
    counts = cooccurrence._company(np.asarray([5, 5, 5, 6, 6, 7]), np.zeros(6, int), V)
    # 5 and 6 are contexts, and 7 has company without being any.
    assert counts.shape == (V, 2)
    assert counts[7].tolist() == [3, 2]
    assert counts[5].tolist() == [6, 6]


def test_of_a_long_text_documents_are_taken_evenly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cooccurrence, "MOST_TOKENS", 20)
    documents = [[n, n, n, n] for n in range(V)]
    known, _ = vectors(documents)
    tokens, _ = cooccurrence._tokens(Documents(documents))  # type: ignore[arg-type]
    assert set(tokens.tolist()) == {0, 3, 6, 9}
    assert set(known) <= {0, 3, 6, 9}


def test_there_are_no_more_directions_than_tokens():
    _, found = vectors([[1, 2, 1, 3, 2]], width=64)
    assert 1 <= found.shape[1] <= 3
