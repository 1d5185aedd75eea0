"""Noise: what it does to a text, how much of it, and what it depends on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.tasks.denoise.noise import (
    deleted,
    infilled,
    masked,
    permuted,
    prefix,
    rotated,
    segments,
    span_corruption,
    span_mask,
    spans_of,
)

SENTINELS = np.arange(1099, 999, -1)
MASK = 900
rows_of = st.lists(st.integers(0, 10**9), min_size=1, max_size=4, unique=True).map(np.array)


def texts(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(1, 800, (rows, length))


@given(
    key=st.integers(0, 2**63), rows=rows_of, length=st.integers(12, 90),
    share=st.floats(0.02, 0.5), mean=st.floats(1.0, 6.0),
)  # fmt: skip
def test_source_and_target_are_the_text(
    key: int, rows: np.ndarray, length: int, share: float, mean: float
):
    ids = texts(len(rows), length)
    mask = span_mask(key, rows, length, share, mean)
    found = span_corruption(ids, mask, SENTINELS)
    noised, count = spans_of(length, share, mean)
    assert (mask.sum(1) == noised).all()
    assert (found.spans_B == count).all()
    assert (found.lengths_B == length - noised + count).all()
    assert found.targets_BT.shape == (len(rows), noised + count + 1)
    assert (found.hidden_BT.sum(1) == noised).all()
    for row, source in enumerate(found.sources_BS):
        answers: dict[int, list[int]] = {}
        for token in found.targets_BT[row].tolist():
            if token >= 1000:
                answers[token] = []
            else:
                answers[next(reversed(answers))].append(token)
        # T5's sentinels in their order, the last of which closes the target.
        assert [*answers] == SENTINELS[: count + 1].tolist()
        assert answers.popitem()[1] == []
        assert all(answers.values())
        whole: list[int] = []
        for token in source.tolist():
            whole += answers.pop(token) if token >= 1000 else [token]
        assert whole == ids[row].tolist()
        assert not answers


def test_every_division_is_as_likely():
    rows = np.arange(6000)
    found = Counter(map(tuple, segments(7, rows, 6, 3).tolist()))
    assert len(found) == 10  # 5 places for 2 cuts
    assert all(abs(count - 600) < 5 * np.sqrt(600 * 0.9) for count in found.values())


def test_span_lengths_have_the_mean_that_is_asked_for():
    mask = span_mask(1, np.arange(200), 568, 0.15, 3.0)
    assert spans_of(568, 0.15, 3.0) == (85, 28)  # T5's own figures for rows of 512
    assert mask.mean() == pytest.approx(85 / 568)
    assert not mask[:, 0].any()
    assert mask[:, -1].all()
    longest = Counter(np.diff(np.flatnonzero(np.diff(mask[0])))[1::2].tolist())
    assert max(longest) > 3


@given(
    key=st.integers(0, 2**63), rows=rows_of, length=st.integers(8, 80),
    share=st.floats(0.05, 0.8), mean=st.floats(1.0, 5.0),
)  # fmt: skip
def test_what_infilling_leaves_is_in_its_order(
    key: int, rows: np.ndarray, length: int, share: float, mean: float
):
    ids = np.tile(np.arange(1, length + 1), (len(rows), 1))
    found = infilled(key, rows, ids, share, mean, MASK)
    assert np.array_equal(found.targets_BT, ids)
    noised = min(max(round(length * share), 1), length - 1)
    for row, source in enumerate(found.sources_BS):
        size = int(found.lengths_B[row])
        assert not source[size:].any()
        kept = source[:size][source[:size] != MASK]
        assert np.array_equal(kept, ids[row][~found.hidden_BT[row]])
        assert len(kept) == length - noised
        assert size - len(kept) == found.spans_B[row]
        assert size <= length


def test_infilled_spans_are_poissons():
    rows, length, share = np.arange(400), 500, 0.3
    found = infilled(3, rows, texts(400, length), share, 3.0, MASK)
    assert found.hidden_BT.mean() == pytest.approx(share)
    # Hidden tokens for each mask: the mean of the distribution, but for the last span's cut.
    assert found.hidden_BT.sum() / found.spans_B.sum() == pytest.approx(3.0, abs=0.06)
    # As many masks put in as a Poisson has zeros: between two tokens that were neighbours.
    ids = np.tile(np.arange(1, length + 1), (400, 1))
    sources = infilled(3, rows, ids, share, 3.0, MASK).sources_BS
    before, mask, after = sources[:, :-2], sources[:, 1:-1], sources[:, 2:]
    put_in = (mask == MASK) & (before != MASK) & (after == before + 1)
    expected = np.exp(-3.0) * found.spans_B.sum()
    assert put_in.sum() == pytest.approx(expected * (1 - share / 3), rel=0.15)


@given(
    key=st.integers(0, 2**63), rows=rows_of, length=st.integers(4, 60), share=st.floats(0.01, 0.99)
)
def test_masked_and_deleted_are_the_share(key: int, rows: np.ndarray, length: int, share: float):
    ids = texts(len(rows), length)
    noised = min(max(round(length * share), 1), length - 1)
    for found in (masked(key, rows, ids, share, MASK), deleted(key, rows, ids, share)):
        assert (found.hidden_BT.sum(1) == noised).all()
        assert np.array_equal(found.targets_BT, ids)
    left = deleted(key, rows, ids, share)
    for source, row, hidden in zip(left.sources_BS, ids, left.hidden_BT, strict=True):
        assert np.array_equal(source, row[~hidden])
    with_masks = masked(key, rows, ids, share, MASK)
    assert np.array_equal(with_masks.sources_BS == MASK, with_masks.hidden_BT)


@given(
    key=st.integers(0, 2**63), rows=rows_of,
    sizes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4),
)  # fmt: skip
def test_sentences_and_texts_stay_whole(key: int, rows: np.ndarray, sizes: list[list[int]]):
    B = len(rows)
    text = np.repeat(np.arange(len(sizes)), [sum(text) for text in sizes])
    flat = [size for text in sizes for size in text]
    sentence = np.repeat(np.arange(len(flat)), flat)
    many = (np.tile(text, (B, 1)), np.tile(sentence, (B, 1)))
    for order in permuted(key, rows, *many):
        assert sorted(order) == [*range(len(text))]
        assert np.array_equal(text[order], text)
        shuffled = sentence[order]
        assert len(np.flatnonzero(np.diff(shuffled))) == len(flat) - 1
        assert all((np.diff(order[shuffled == n]) == 1).all() for n in range(len(flat)))
    for order in rotated(key, rows, many[0]):
        assert np.array_equal(text[order], text)
        for number in range(len(sizes)):
            places = order[text == number]
            assert np.array_equal(np.sort(places), np.flatnonzero(text == number))
            steps = np.diff(places)
            assert (steps != 1).sum() <= 1  # where it goes on at its start


def test_orders_are_random():
    text = np.zeros((2000, 4), dtype=np.int64)
    sentence = np.tile(np.arange(4), (2000, 1))
    orders = Counter(map(tuple, permuted(5, np.arange(2000), text, sentence).tolist()))
    assert len(orders) == 24
    firsts = np.bincount(rotated(5, np.arange(2000), text)[:, 0])
    assert (np.abs(firsts - 500) < 100).all()


def test_a_prefix_is_the_source():
    ids = texts(3, 10)
    found = prefix(ids, 4)
    assert np.array_equal(np.concatenate([found.sources_BS, found.targets_BT], axis=1), ids)
    assert found.hidden_BT.all()


@pytest.mark.parametrize("noise", ["spans", "infilled", "masked", "deleted", "permuted", "rotated"])
def test_noise_is_a_function_of_key_and_position(noise: str):
    length = 40
    text = np.tile(np.arange(length) // 20, (6, 1))
    sentence = np.tile(np.arange(length) // 4, (6, 1))
    ids = texts(6, length)

    def made(key: int, rows: np.ndarray, part: slice = slice(None)) -> list[list[int]]:
        if noise == "spans":
            mask = span_mask(key, rows, length, 0.2, 3.0)
            return span_corruption(ids[part], mask, SENTINELS).sources_BS.tolist()
        if noise == "permuted":
            return permuted(key, rows, text[part], sentence[part]).tolist()
        if noise == "rotated":
            return rotated(key, rows, text[part]).tolist()
        if noise == "deleted":
            return deleted(key, rows, ids[part], 0.2).sources_BS.tolist()
        if noise == "masked":
            return masked(key, rows, ids[part], 0.2, MASK).sources_BS.tolist()
        found = infilled(key, rows, ids[part], 0.3, 3.0, MASK)
        return [
            row[:size] for row, size in zip(found.sources_BS.tolist(), found.lengths_B, strict=True)
        ]

    rows = np.arange(6) + 100
    whole = made(1, rows)
    assert made(1, rows[2:4], slice(2, 4)) == whole[2:4]
    assert made(2, rows) != whole
    assert made(1, rows + 6) != whole
