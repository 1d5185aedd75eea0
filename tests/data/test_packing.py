"""Packing: every text once, in few rows; batch N whatever was asked before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmctl.data.packing import PACKING_WINDOW_BATCHES, PackedBatches, pack
from llmctl.data.shards.chunks import Chunks


class Lengths:
    """A reader that has lengths only: cutting and packing look at nothing else."""

    def __init__(self, lengths: list[int]) -> None:
        self.document_lengths = np.asarray(lengths, dtype=np.int64)


OVERHEAD = 3
LENGTHS = st.lists(st.integers(0, 100), min_size=1, max_size=120).filter(any)


def batches_of(lengths: list[int], **options: Any) -> PackedBatches:
    settings = {"sequence_length": 32, "batch_size": 4, "overhead": OVERHEAD, "seed": 1, **options}
    repeat = settings.get("repeat", True)
    chunks = Chunks(
        Lengths(lengths),  # type: ignore[arg-type]
        settings["sequence_length"] - settings["overhead"],
        seed=settings["seed"],
        shuffle=repeat,
    )
    return PackedBatches(chunks, **settings)


def pieces(batches: PackedBatches, number: int) -> list[tuple[int, int, int, int]]:
    refs, _ = batches.batch(number)
    parts = (refs.position, refs.document, refs.start, refs.stop)
    return list(zip(*(part.tolist() for part in parts), strict=True))


def check_rows(batches: PackedBatches, number: int) -> None:
    refs, rows = batches.batch(number)
    assert [member for row in rows for member in row] == list(range(len(refs)))
    assert rows
    for row in rows:
        assert row
        assert sum(refs.lengths[row]) + OVERHEAD * len(row) <= batches.sequence_length


@given(lengths=st.lists(st.integers(1, 64), max_size=200), capacity=st.integers(64, 200))
def test_pack_puts_each_text_in_one_row_that_holds_it(lengths: list[int], capacity: int):
    rows = pack(np.asarray(lengths, dtype=np.int64), capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[index] for index in row) <= capacity for row in rows)


@given(lengths=st.lists(st.integers(1, 64), max_size=60), capacity=st.integers(64, 130))
def test_no_two_packed_rows_would_fit_in_one(lengths: list[int], capacity: int):
    rows = pack(np.asarray(lengths, dtype=np.int64), capacity)
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > capacity


def best_fit_by_search(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's algorithm, looking at every row each time."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        free = [capacity - sum(lengths[i] for i in row) for row in rows]
        fitting = [(room, row) for row, room in enumerate(free) if room >= lengths[index]]
        if fitting:
            rows[min(fitting)[1]].append(index)
        else:
            rows.append([index])
    return rows


@given(lengths=st.lists(st.integers(1, 30), max_size=60), capacity=st.integers(30, 70))
def test_pack_is_best_fit_longest_first(lengths: list[int], capacity: int):
    rows = pack(np.asarray(lengths, dtype=np.int64), capacity)
    assert rows == best_fit_by_search(lengths, capacity)


def test_pack_refuses_a_text_longer_than_a_row():
    with pytest.raises(ValueError, match="65"):
        pack(np.array([3, 65]), 64)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), seed=st.integers(0, 99))
@example(lengths=[1] * 40, batch_size=1, seed=0)
@example(lengths=[29] * 60 + [1] * 60, batch_size=2, seed=0)
def test_a_window_holds_its_chunks_once_each_in_rows_that_fit(
    lengths: list[int], batch_size: int, seed: int
):
    batches = batches_of(lengths, batch_size=batch_size, seed=seed)
    span = PACKING_WINDOW_BATCHES * batches.chunks_per_batch
    for window in (0, 3):
        positions = []
        for number in range(window * PACKING_WINDOW_BATCHES, (window + 1) * PACKING_WINDOW_BATCHES):
            check_rows(batches, number)
            positions += [position for position, *_ in pieces(batches, number)]
        assert sorted(positions) == list(range(window * span, (window + 1) * span))


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
@example(lengths=[29] * 64 + [1] * 3, batch_size=1)
def test_one_pass_holds_every_token_of_the_corpus_once(lengths: list[int], batch_size: int):
    batches = batches_of(lengths, batch_size=batch_size, repeat=False)
    seen: set[tuple[int, int]] = set()
    for number in range(batches.batches_per_epoch):
        check_rows(batches, number)
        for _, document, start, stop in pieces(batches, number):
            tokens = {(document, place) for place in range(start, stop)}
            assert not seen & tokens
            seen |= tokens
    assert seen == {(d, place) for d, length in enumerate(lengths) for place in range(length)}


@given(lengths=LENGTHS, batch_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_each_epoch_has_every_chunk_once_in_another_order(
    lengths: list[int], batch_size: int, seed: int
):
    batches = batches_of(lengths, batch_size=batch_size, seed=seed)
    count = batches.chunks.count
    stream: dict[int, tuple[int, int, int]] = {}
    number = 0
    while len(stream) < 3 * count or number % PACKING_WINDOW_BATCHES:
        stream.update({p: (d, start, stop) for p, d, start, stop in pieces(batches, number)})
        number += 1
    epochs = [[stream[e * count + place] for place in range(count)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(epochs[0])
        assert len(set(epoch)) == count
    if count >= 20:
        assert epochs[0] != epochs[1] != epochs[2]


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, numbers=st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_a_batch_is_the_same_alone_or_after_any_others(lengths: list[int], numbers: list[int]):
    used = batches_of(lengths)
    for number in numbers:
        alone = batches_of(lengths)
        assert used.batch(number)[1] == alone.batch(number)[1]
        assert pieces(used, number) == pieces(alone, number)


def test_another_seed_gives_other_batches():
    lengths = [7] * 100
    assert pieces(batches_of(lengths, seed=1), 0) != pieces(batches_of(lengths, seed=2), 0)


def test_chunks_are_never_empty_nor_longer_than_allowed():
    chunks = batches_of([0, 1, 29, 30, 58, 0, 59, 62], repeat=False).chunks
    refs = chunks.at(np.arange(chunks.count))
    assert refs.document.tolist() == [1, 2, 3, 3, 4, 4, 6, 6, 6, 7, 7, 7]
    assert refs.lengths.tolist() == [1, 29, 27, 3, 29, 29, 29, 27, 3, 29, 29, 4]


@given(lengths=LENGTHS, max_tokens=st.integers(1, 40))
def test_chunks_are_as_few_as_can_be_and_the_rest_is_not_tiny(lengths: list[int], max_tokens: int):
    chunks = Chunks(Lengths(lengths), max_tokens, seed=0, shuffle=False)  # type: ignore[arg-type]
    refs = chunks.at(np.arange(chunks.count))
    assert chunks.count == sum(-(-length // max_tokens) for length in lengths)
    for document, start, length in zip(refs.document, refs.start, refs.lengths, strict=True):
        assert min(max(1, max_tokens // 8), lengths[document]) <= length <= max_tokens
        assert start == 0 or start in refs.stop[refs.document == document]


@pytest.mark.parametrize("kind", ["uniform", "short", "lognormal"])
def test_little_is_padding(kind: str):
    generator = np.random.default_rng(0)
    lengths = {
        "uniform": generator.integers(1, 300, 3000),
        "short": generator.integers(1, 60, 3000),
        "lognormal": np.exp(generator.normal(4, 1, 3000)).astype(int) + 1,
    }[kind].tolist()
    batches = batches_of(lengths, sequence_length=128, batch_size=16)
    real = rows = 0
    for number in range(2 * PACKING_WINDOW_BATCHES):
        refs, packed = batches.batch(number)
        real += int(refs.lengths.sum()) + OVERHEAD * len(refs)
        rows += len(packed)
    assert 1 - real / (rows * 128) < 0.06
    # Close to the fewest rows that could hold as many tokens, and to the batch size asked for.
    assert rows <= 1.06 * -(-real // 128)
    assert abs(rows / (2 * PACKING_WINDOW_BATCHES) - 16) < 2


def test_rows_are_dealt_evenly():
    generator = np.random.default_rng(1)
    batches = batches_of(generator.integers(1, 100, 2000).tolist(), batch_size=8)
    counts = [len(batches.batch(number)[1]) for number in range(PACKING_WINDOW_BATCHES)]
    assert max(counts) - min(counts) <= 1
