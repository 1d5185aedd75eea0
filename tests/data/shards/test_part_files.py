"""Placed documents: a file gives back what was written; choosing some keeps theirs together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.shards.encoding import EncodedBatch
from llmctl.data.shards.part_files import EncodedDocuments, PartWriter, read_part
from llmctl.errors import InputError

INT64 = st.integers(0, 2**63 - 1)


@st.composite
def rows(draw: st.DrawFn, largest: int) -> list[dict[str, Any]]:
    tokens = st.lists(st.integers(0, largest), max_size=6)
    return draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "tokens": tokens,
                    "starts": st.lists(st.integers(0, 2**31 - 1), max_size=3),
                    "place": st.integers(0, 2**64 - 1),
                    "characters": INT64,
                    "text_bytes": INT64,
                    "words": INT64,
                    "unknown": INT64,
                }
            ),
            min_size=1,
            max_size=8,
        )
    )


def batch_of(rows: list[dict[str, Any]], dtype: type) -> EncodedDocuments:
    def column(name: str, kind: type = np.int64) -> Any:
        return np.array([row[name] for row in rows], dtype=kind)

    encoded = EncodedBatch(
        tokens=np.array([t for row in rows for t in row["tokens"]], dtype=dtype),
        token_counts=np.array([len(row["tokens"]) for row in rows]),
        starts=np.array([s for row in rows for s in row["starts"]], dtype=np.int32),
        start_counts=np.array([len(row["starts"]) for row in rows]),
        word_counts=column("words"),
        unknown_counts=column("unknown"),
    )
    places = column("place", np.uint64)
    return EncodedDocuments(encoded, places, column("characters"), column("text_bytes"), 0)


def rows_of(batch: EncodedDocuments) -> list[dict[str, Any]]:
    return [
        {
            "tokens": tokens.tolist(),
            "starts": starts.tolist(),
            "place": place,
            "characters": characters,
            "text_bytes": text_bytes,
            "words": words,
            "unknown": unknown,
        }
        for (tokens, starts), place, characters, text_bytes, words, unknown in zip(
            batch.encoded.documents(),
            batch.split_keys.tolist(),
            batch.characters.tolist(),
            batch.text_bytes.tolist(),
            batch.encoded.word_counts.tolist(),
            batch.encoded.unknown_counts.tolist(),
            strict=True,
        )
    ]


@given(data=st.data(), vocab_size=st.sampled_from([5, 1 << 16, (1 << 16) + 1]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, vocab_size: int):
    batches = data.draw(st.lists(rows(vocab_size - 1), max_size=4))
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    path = tmp_path_factory.mktemp("placed") / "documents.arrow"
    writer = PartWriter(path, vocab_size)
    for batch in batches:
        writer.add(batch_of(batch, dtype))
    writer.close()
    found = list(read_part(path))
    assert [rows_of(batch) for batch in found] == batches
    lengths = [sum(len(row["tokens"]) for row in batch) for batch in batches]
    assert [batch.position for batch in found] == np.cumsum(lengths).tolist()
    assert all(batch.encoded.tokens.dtype == dtype for batch in found)
    assert not any(batch.encoded.tokens.flags.owndata for batch in found)


@given(data=st.data(), made=rows(99))
def test_some_of_them(data: st.DataObject, made: list[dict[str, Any]]):
    kept = data.draw(st.lists(st.booleans(), min_size=len(made), max_size=len(made)))
    chosen = batch_of(made, np.uint16).select(np.array(kept))
    if any(kept):
        assert rows_of(chosen) == [row for row, keep in zip(made, kept, strict=True) if keep]
    else:
        assert len(chosen.split_keys) == len(chosen.encoded.tokens) == 0


def test_a_file_of_something_else_is_an_input_error(tmp_path: Path):
    path = tmp_path / "documents.arrow"
    path.write_bytes(b"ARROW1\0\0" * 9)
    with pytest.raises(InputError, match=r"documents\.arrow can't be read"):
        list(read_part(path))


def test_an_abandoned_writer_lets_go_of_its_file(tmp_path: Path):
    writer = PartWriter(tmp_path / "documents.arrow", 5)
    writer.abandon()
    with pytest.raises((pa.ArrowException, ValueError)):
        writer.add(batch_of([], np.uint16))
