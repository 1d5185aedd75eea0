"""Exact duplicates against a Python set."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.text.hashing import SeenHashes, text_hash

SMALL = st.integers(0, 40)
ANY = st.integers(0, 2**64 - 1)


@given(batches=st.lists(st.lists(SMALL | ANY, max_size=30), max_size=12))
def test_a_hash_is_new_exactly_once(batches: list[list[int]]):
    hashes, known = SeenHashes(), set[int]()
    for batch in batches:
        expected = []
        for value in batch:
            expected.append(value not in known)
            known.add(value)
        assert hashes.add(np.asarray(batch, dtype=np.uint64)).tolist() == expected


@given(values=st.lists(SMALL, max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_grouping_into_batches_changes_nothing(values: list[int], cuts: list[int]):
    array = np.asarray(values, dtype=np.uint64)
    whole = SeenHashes().add(array)
    hashes = SeenHashes()
    parts = [hashes.add(part) for part in np.split(array, sorted(min(c, len(array)) for c in cuts))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_many_single_hashes_take_eight_bytes_each_in_few_arrays():
    hashes = SeenHashes()
    values = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64)
    for value in values:
        assert hashes.add(np.array([value])).tolist() == [True]
    assert sum(run.nbytes for run in hashes._runs) == 8 * len(values)
    assert len(hashes._runs) <= 2 * np.log2(len(values))


def test_text_hash_never_changes():
    """It decides which documents are held out: printf | b2sum -l 64, read as little endian."""
    assert text_hash("").to_bytes(8, "little").hex() == "e4a6a0577479b2b4"
    assert text_hash("abc").to_bytes(8, "little").hex() == "d8bb14d833d59559"


def test_texts_that_differ_by_anything_have_different_hashes():
    texts = ["a", "a ", " a", "A", "á", "a\u0301", "a\n", "", "a\x00"]
    assert len({text_hash(text) for text in texts}) == len(texts)
