"""Parts of a corpus: together all of its documents in their order, each once."""

from __future__ import annotations

import csv
import gzip
import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.tables import columnar
from llmctl.data.text import decoding, plain
from llmctl.data.text.documents import Corpus, CorpusPart
from llmctl.errors import InputError

TEXTS = st.sampled_from(["", " ", "a", "The ship sails.", "é河", "x" * 90])
LINES = st.lists(TEXTS | st.text("ab \n", max_size=9), max_size=30)
SUFFIXES = ["txt", "jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz"]


def write(path: Path, lines: list[str]) -> None:
    objects = [{"text": line} for line in lines]
    rows = "".join(json.dumps(value) + "\n" for value in objects)
    match path.name.partition(".")[2]:
        case "txt":
            path.write_text("\n".join(lines), encoding="utf-8")
        case "jsonl":
            path.write_text(rows.replace("\n", "\n\n", 3))
        case "json":
            path.write_text(json.dumps(objects))
        case "csv":
            with path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([["n", "text"], *enumerate(lines)])
        case "tsv":
            flat = (line.replace("\n", " ") for line in lines)
            path.write_text("text\tn\n" + "".join(f"{line}\t1\n" for line in flat))
        case "parquet":
            table = pa.table({"text": pa.array(lines, pa.string())})
            pq.write_table(table, path, row_group_size=4)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(rows.encode(), mtime=0))


@given(
    made=st.lists(st.tuples(st.sampled_from(SUFFIXES), LINES), min_size=1, max_size=5),
    unit=st.sampled_from(["auto", "file", "paragraph", "line"]),
    keep_ends=st.booleans(),
    of=st.integers(1, 40),
    block=st.integers(1, 60),
)
def test_parts_share_out_the_documents(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[tuple[str, list[str]]],
    unit: str,
    keep_ends: bool,
    of: int,
    block: int,
):
    folder = tmp_path_factory.mktemp("corpus")
    paths = []
    for number, (suffix, lines) in enumerate(made):
        paths.append(folder / f"{number}.{suffix}")
        write(paths[-1], lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "DECODE_BLOCK", block)
        patch.setattr(columnar, "BATCH_ROWS", 3)
        patch.setattr(plain, "LONG_FILE", 20)
        patch.setattr(plain, "PIECE", 8)
        corpus = Corpus([str(path) for path in paths], unit=unit, keep_ends=keep_ends)
        parts = [CorpusPart(corpus, number, of) for number in range(1, of + 1)]
        shared = [list(part) for part in parts]
        together = [document for part in shared for document in part]
        if together:
            assert together == list(corpus)
        else:
            with pytest.raises(InputError, match="has no text"):
                list(corpus)
    assert sum(part.total_bytes for part in parts) == corpus.total_bytes
    for number, part in enumerate(shared, 1):
        assert all(corpus.part_of(document, of) == number for document in part)
    # The seams: what a part leaves to earlier ones is what they have of that file.
    reading = [part for part in parts if part.files]
    for part, other in pairwise(reading):
        if part.files[-1] == other.files[0]:
            assert part.until == other.before
        else:
            assert other.before == 0


def test_a_part_reads_its_own_files_only(tmp_path: Path):
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"Document {number}.\n")
    corpus = Corpus([str(tmp_path)])
    (tmp_path / "6.txt").write_bytes(b"Document \xff.\n")
    assert [document.text for document in CorpusPart(corpus, 2, 4)] == [
        "Document 2.", "Document 3.",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"6\.txt.*not UTF-8"):
        list(CorpusPart(corpus, 4, 4))


def test_rows_before_a_part_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parsing them would cost each part as much as the whole file; the line numbers stay."""
    monkeypatch.setattr(decoding, "DECODE_BLOCK", 64)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"Document {number}."}) for number in range(100)]
    path.write_text("\n".join([*lines[:10], "{broken", *lines[10:]]) + "\n")
    corpus = Corpus([str(path)])
    found = list(CorpusPart(corpus, 2, 2))
    assert found[-1].text == "Document 99."
    assert found[-1].source == f"{path}:101"
    with pytest.raises(InputError, match=r"a\.jsonl:11 is not JSON"):
        list(CorpusPart(corpus, 1, 2))


def test_digests_of_files_make_that_of_the_corpus(tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name}.\n")
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    one, other = Corpus(names), Corpus(names[::-1])
    assert [one.file_digest(n) for n in (0, 1)] == [other.file_digest(n) for n in (1, 0)]
    assert one.digest() != other.digest()
    assert Corpus(["python:docs"]).file_digest(0) != Corpus(["python:code"]).file_digest(0)
