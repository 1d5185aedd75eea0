"""Shards: what is written is read, in the same bytes however it came, without a copy."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmctl.data.shards import files as shards
from llmctl.data.shards.files import ShardReader, ShardWriter
from llmctl.errors import InputError

Document = tuple[list[int], list[int]]


@st.composite
def documents(draw: st.DrawFn, vocab_size: int) -> list[Document]:
    made = []
    for tokens in draw(
        st.lists(st.lists(st.integers(0, vocab_size - 1), max_size=12), max_size=25)
    ):
        inner = range(1, len(tokens))
        starts = draw(st.sets(st.sampled_from(inner))) if inner else set()
        made.append((tokens, [0, *sorted(starts)] if tokens else []))
    return made


def write(
    folder: Path, made: list[Document], *, vocab_size: int = 100, dtype: type = np.int64
) -> ShardWriter:
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, "train", vocab_size, "digest")
    for tokens, starts in made:
        writer.add(np.asarray(tokens, dtype), np.asarray(starts, np.int32))
    writer.close()
    return writer


def check(folder: Path, made: list[Document]) -> None:
    reader = ShardReader(folder, "train")
    assert len(reader) == len(made)
    np.testing.assert_array_equal(reader.document_lengths, [len(tokens) for tokens, _ in made])
    for number, (tokens, starts) in enumerate(made):
        assert reader.tokens(number).tolist() == tokens
        assert reader.sentence_starts(number).tolist() == starts


@given(data=st.data(), vocab_size=st.sampled_from([5, 1 << 16, (1 << 16) + 1, 1 << 20]))
def test_round_trip_over_batches_and_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, vocab_size: int
):
    made = data.draw(documents(vocab_size))
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_TOKENS", 10)
        patch.setattr(shards, "SHARD_TOKENS", 40)
        writer = write(folder, made, vocab_size=vocab_size)
    assert (writer.documents, writer.tokens) == (len(made), sum(len(t) for t, _ in made))
    check(folder, made)


@settings(max_examples=30, deadline=None)
@given(made=documents(1000))
def test_bytes_depend_on_the_documents_alone(
    tmp_path_factory: pytest.TempPathFactory, made: list[Document]
):
    """Not on the arrays they came in: own copies, wider types, views of one large array."""
    root = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_TOKENS", 10)
        patch.setattr(shards, "SHARD_TOKENS", 40)
        for name, dtype in (("wide", np.int64), ("narrow", np.uint16)):
            write(root / name, made, vocab_size=1000, dtype=dtype)
        tokens = np.asarray([t for doc, _ in made for t in doc], np.uint32)
        ends = np.cumsum([len(doc) for doc, _ in made])
        (root / "views").mkdir()
        writer = ShardWriter(root / "views", "train", 1000, "digest")
        for part, (_, starts) in zip(np.split(tokens, ends[:-1]), made, strict=False):
            writer.add(part, np.asarray(starts, np.int32))
        writer.close()
    contents = [
        {path.name: path.read_bytes() for path in (root / name).iterdir()}
        for name in ("wide", "narrow", "views")
    ]
    assert contents[0] == contents[1] == contents[2]


def test_a_new_file_begins_when_one_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "ROWS_TOKENS", 10)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 30)
    made = [([number] * 5, [0]) for number in range(20)]
    write(tmp_path, made)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"train-{number:05d}.arrow" for number in range(4)]
    in_file = [pa.ipc.open_file(tmp_path / name).read_all().num_rows for name in files]
    assert in_file == [6, 6, 6, 2]
    check(tmp_path, made)


def test_a_file_that_ends_exactly_full_has_no_empty_one_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "ROWS_TOKENS", 10)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 10)
    write(tmp_path, [([1] * 10, [0])] * 2)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(5, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32), (1 << 20, np.uint32)],
)
def test_ids_take_two_bytes_where_the_vocabulary_allows(
    tmp_path: Path, vocab_size: int, dtype: type
):
    write(tmp_path, [([0, vocab_size - 1], [0])], vocab_size=vocab_size)
    tokens = ShardReader(tmp_path, "train").tokens(0)
    assert tokens.dtype == dtype
    assert tokens.tolist() == [0, vocab_size - 1]


def test_other_programs_read_the_files_as_plain_arrow(tmp_path: Path):
    write(tmp_path, [([1, 2, 3], [0, 2]), ([4], [0])])
    table = pa.ipc.open_file(tmp_path / "train-00000.arrow").read_all()
    assert table.to_pydict() == {"tokens": [[1, 2, 3], [4]], "sentence_starts": [[0, 2], [0]]}
    assert table.schema.metadata[b"llmctl.tokenizer"] == b"digest"
    assert table.schema.metadata[b"llmctl.vocab_size"] == b"100"
    table.validate(full=True)


def test_reading_copies_nothing(tmp_path: Path):
    made = [([number % 100] * 1000, [0, 500]) for number in range(50)]
    write(tmp_path, made)
    before = pa.total_allocated_bytes()
    reader = ShardReader(tmp_path, "train")
    views: list[NDArray[np.generic]] = [reader.tokens(3), reader.sentence_starts(3)]
    assert pa.total_allocated_bytes() == before
    for view, again in zip(views, (reader.tokens(3), reader.sentence_starts(3)), strict=True):
        assert not view.flags.owndata
        assert not view.flags.writeable
        assert np.shares_memory(view, again)


@given(start=st.integers(0, 9), length=st.integers(0, 30))
def test_a_part_never_reaches_into_the_next_document(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int
):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, [(list(range(10)), [0]), (list(range(50, 60)), [0])])
    part = ShardReader(folder, "train").tokens(0, start, start + length)
    assert part.tolist() == list(range(10))[start : start + length]


def test_an_empty_split_has_one_file_and_no_documents(tmp_path: Path):
    write(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.arrow"]
    assert len(ShardReader(tmp_path, "train")) == 0


def test_an_abandoned_writer_lets_go_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "ROWS_TOKENS", 1)
    writer = ShardWriter(tmp_path, "train", 100, "digest")
    writer.add(np.array([1, 2]), np.array([0]))
    writer.abandon()
    with pytest.raises(InputError, match=r"train-00000\.arrow"):
        ShardReader(tmp_path, "train")


def test_a_missing_split_is_an_input_error(tmp_path: Path):
    write(tmp_path, [([1], [0])])
    with pytest.raises(InputError, match="validation"):
        ShardReader(tmp_path, "validation")


def test_a_file_cut_anywhere_is_an_input_error_that_names_it(tmp_path: Path):
    write(tmp_path, [([1, 2, 3], [0])])
    path = tmp_path / "train-00000.arrow"
    content = path.read_bytes()
    for length in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"train-00000\.arrow"):
            ShardReader(tmp_path, "train")


@pytest.mark.parametrize("content", [b"", b"not arrow", b"ARROW1\0\0" * 4, bytes(1000)])
def test_a_file_of_something_else_is_an_input_error(tmp_path: Path, content: bytes):
    (tmp_path / "train-00000.arrow").write_bytes(content)
    with pytest.raises(InputError, match=r"train-00000\.arrow"):
        ShardReader(tmp_path, "train")


def test_arrow_that_is_not_ours_is_an_input_error(tmp_path: Path):
    table = pa.table({"tokens": [[1]], "sentence_starts": [[0]]})
    with pa.OSFile(str(tmp_path / "train-00000.arrow"), "wb") as sink:
        writer = pa.ipc.new_file(sink, table.schema)
        writer.write_table(table)
        writer.close()
    with pytest.raises(InputError, match="llmctl tokenize"):
        ShardReader(tmp_path, "train")


@pytest.mark.parametrize("change", [b"X", b"\xff"])
@pytest.mark.parametrize("name", [b"tokens", b"sentence_starts", b"llmctl.format"])
def test_a_changed_byte_in_a_name_is_an_input_error(tmp_path: Path, name: bytes, change: bytes):
    write(tmp_path, [([1, 2, 3], [0])])
    path = tmp_path / "train-00000.arrow"
    path.write_bytes(path.read_bytes().replace(name, change + name[1:]))
    with pytest.raises(InputError, match=r"train-00000\.arrow"):
        ShardReader(tmp_path, "train")


def test_missing_values_are_an_input_error(tmp_path: Path):
    """Zero-copy access has no place for them."""
    write(tmp_path, [([1, 2, 3], [0])])
    path = tmp_path / "train-00000.arrow"
    schema = pa.ipc.open_file(path).schema
    columns = [
        pa.array([[1, None]], schema.field(0).type),
        pa.array([[0]], schema.field(1).type),
    ]
    with pa.OSFile(str(path), "wb") as sink:
        writer = pa.ipc.new_file(sink, schema)
        writer.write_batch(pa.record_batch(columns, schema=schema))
        writer.close()
    with pytest.raises(InputError, match=r"train-00000\.arrow"):
        ShardReader(tmp_path, "train")


def test_a_pending_document_does_not_keep_its_batch_alive(tmp_path: Path):
    """Else memory grows with the corpus: the few validation documents wait the longest."""
    writer = ShardWriter(tmp_path, "validation", 100, "digest")
    batch, starts = np.arange(50, dtype=np.uint16), np.zeros(50, dtype=np.int32)
    alive = [weakref.ref(array) for array in (batch, starts)]
    writer.add(batch[10:20], starts[:1])
    del batch, starts
    assert [reference() for reference in alive] == [None, None]
    writer.close()
    assert ShardReader(tmp_path, "validation").tokens(0).tolist() == list(range(10, 20))


TWO = [([1, 2, 3], [0, 2]), ([4], [0])]
TOKENS = [0, 3, 4], pa.array([1, 2, 3, 4], pa.uint16())
STARTS = [0, 2, 3], pa.array([0, 2, 0], pa.int32())


def rewritten(path: Path, tokens: object, starts: object) -> None:
    """A shard of other lists, as whoever can write its digest too may have made it.

    Offsets are put into the file behind Arrow's back, which refuses to write some.
    """
    metadata = pa.ipc.open_file(path).schema.metadata
    columns = [
        pa.LargeListArray.from_arrays(pa.array(sound[0], pa.int64()), values)
        for sound, (_, values) in zip((TOKENS, STARTS), (tokens, starts), strict=True)
    ]
    schema = pa.schema(
        [pa.field("tokens", columns[0].type), pa.field("sentence_starts", columns[1].type)],
        metadata=metadata,
    )
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    content = path.read_bytes()
    for sound, (offsets, _) in zip((TOKENS, STARTS), (tokens, starts), strict=True):
        before = np.array(sound[0], np.int64).tobytes()
        assert content.count(before) == 1
        content = content.replace(before, np.array(offsets, np.int64).tobytes())
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tokens", "starts"),
    [
        ((TOKENS[0], pa.array([1, 2, 100, 4], pa.uint16())), STARTS),
        ((TOKENS[0], pa.array([1, 2, 3, 4], pa.float32())), STARTS),
        ((TOKENS[0], pa.array([1, 2, -3, 4], pa.int16())), STARTS),
        (([0, 4, 3], TOKENS[1]), STARTS),
        (([3, 0, 4], TOKENS[1]), STARTS),
        (([0, 3, 1 << 40], TOKENS[1]), STARTS),
        (([-1, 3, 4], TOKENS[1]), STARTS),
        (([0, 4, 4], TOKENS[1]), STARTS),
        (TOKENS, (STARTS[0], pa.array([0, 2, 0], pa.int64()))),
        (TOKENS, (STARTS[0], pa.array([0, -1, 0], pa.int32()))),
        (TOKENS, (STARTS[0], pa.array([0, 3, 0], pa.int32()))),
        (TOKENS, (STARTS[0], pa.array([0, 0, 0], pa.int32()))),
        (TOKENS, (STARTS[0], pa.array([1, 2, 0], pa.int32()))),
        (TOKENS, ([0, 2, 1 << 30], STARTS[1])),
        (TOKENS, ([0, 3, 3], STARTS[1])),
    ],
)
def test_what_a_shard_holds_is_looked_at(tmp_path: Path, tokens: object, starts: object):
    """Followed blindly these are other memory, ids beyond the embeddings, or other sentences."""
    write(tmp_path, TWO)
    path = tmp_path / "train-00000.arrow"
    rewritten(path, TOKENS, STARTS)
    check(tmp_path, TWO)
    rewritten(path, tokens, starts)
    with pytest.raises(InputError, match=r"train-00000\.arrow"):
        ShardReader(tmp_path, "train")


def test_ids_are_those_of_the_tokenizer_that_is_used(tmp_path: Path):
    write(tmp_path, [([1, 99], [0])])
    assert len(ShardReader(tmp_path, "train", 100)) == 1
    with pytest.raises(InputError, match=r"the token 99, and the vocabulary has 99"):
        ShardReader(tmp_path, "train", 99)
