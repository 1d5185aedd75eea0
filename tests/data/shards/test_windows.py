"""Rows of next tokens: nothing is lost, nothing comes twice, and every row can be made alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.shards.files import ShardReader, ShardWriter
from llmctl.data.shards.windows import TokenStream, WindowBatches


def reader(folder: Path, documents: list[list[int]]) -> ShardReader:
    writer = ShardWriter(folder, "train", 1000, "digest")
    for document in documents:
        writer.add(np.asarray(document, dtype=np.uint32), np.zeros(1, dtype=np.int32))
    writer.close()
    return ShardReader(folder, "train")


def written_out(documents: list[list[int]], start: int, end: int) -> list[int]:
    """The stream as its definition says."""
    ends = [end] if start != end else []
    return [token for document in documents for token in [start, *document, *ends]]


documents_strategy = st.lists(
    st.lists(st.integers(10, 999), min_size=1, max_size=12), min_size=1, max_size=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@given(documents_strategy, st.booleans(), st.integers(0, 200), st.integers(1, 60))
def test_a_stream_is_its_documents_end_to_end(
    folder: Path, documents: list[list[int]], same: bool, first: int, count: int
):
    start, end = 1, 1 if same else 2
    stream = TokenStream(reader(folder, documents), start, end)
    expected = written_out(documents, start, end)
    assert stream.length == len(expected)
    ids, begins = np.empty(count, np.int64), np.empty(count, np.int64)
    stream.read(first, ids, begins)
    places = [(first + i) % len(expected) for i in range(count)]
    assert ids.tolist() == [expected[place] for place in places]
    for column, place in enumerate(places):
        back = 0
        while expected[place - back] != start:
            back += 1
        assert column - begins[column] == back


@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=5),
    st.booleans(), st.integers(0, 100), st.integers(1, 60),
)  # fmt: skip
def test_sentences_begin_where_the_documents_say(
    folder: Path, sizes: list[list[int]], same: bool, first: int, count: int
):
    writer = ShardWriter(folder, "validation", 1000, "digest")
    expected: list[bool] = []
    for sentences in sizes:
        starts = np.cumsum([0, *sentences[:-1]]).astype(np.int32)
        writer.add(np.full(sum(sentences), 10, dtype=np.uint32), starts)
        inside = [place in starts for place in range(sum(sentences))]
        expected += [False, *inside, *([] if same else [False])]
    writer.close()
    stream = TokenStream(ShardReader(folder, "validation"), 1, 1 if same else 2)
    found = stream.sentences(first, count).tolist()
    assert found == [expected[(first + place) % len(expected)] for place in range(count)]


@given(documents_strategy, st.booleans(), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_one_pass_of_validation_predicts_every_token_once(
    folder: Path, documents: list[list[int]], same: bool, length: int, size: int, seed: int
):
    start, end = 1, 1 if same else 2
    stream = TokenStream(reader(folder, documents), start, end)
    batches = WindowBatches(
        stream, sequence_length=length, batch_size=size, seed=seed, repeat=False
    )
    predicted = []
    for number in range(batches.batches_per_epoch):
        rows = batches.batch(number)
        for ids, known in zip(rows.ids, rows.known, strict=True):
            predicted += ids[1:known].tolist()
    expected = written_out(documents, start, end)[1:]
    # With one token around documents, the last one's end is the start after it.
    assert predicted == [*expected, start] if same else predicted == expected


@given(documents_strategy, st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_of_training_covers_the_ring(
    folder: Path, documents: list[list[int]], length: int, size: int, seed: int
):
    stream = TokenStream(reader(folder, documents), 1, 1)
    batches = WindowBatches(stream, sequence_length=length, batch_size=size, seed=seed, repeat=True)
    rows = [
        row
        for number in range(-(-batches.rows_per_epoch // size))
        for row in batches.batch(number).ids
    ][: batches.rows_per_epoch]
    counts = np.bincount(np.concatenate([row[:-1] for row in rows]), minlength=1000)
    expected = np.bincount(written_out(documents, 1, 1), minlength=1000)
    assert (counts >= expected).all()
    assert counts.sum() - expected.sum() < length


def test_the_order_changes_with_the_epoch_and_the_seed_and_nothing_else(folder: Path):
    stream = TokenStream(reader(folder, [list(range(10, 500))]), 1, 1)

    def epoch(number: int, seed: int) -> list[list[int]]:
        batches = WindowBatches(stream, sequence_length=16, batch_size=1, seed=seed, repeat=True)
        n = batches.rows_per_epoch
        return [batches.batch(number * n + row).ids[0].tolist() for row in range(n)]

    assert epoch(0, 0) == epoch(0, 0)
    assert sorted(epoch(0, 0)) != sorted(epoch(1, 0))  # cut at other places
    assert epoch(0, 0) != epoch(0, 1)
    for row in epoch(3, 5):
        wrapped = [1, *range(10, 500)]
        place = wrapped.index(row[0])
        assert row == [wrapped[(place + i) % len(wrapped)] for i in range(17)]
