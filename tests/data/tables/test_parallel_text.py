"""Sources and targets: every layout read alike, lines that stay aligned, and what bad files get."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.tables.parallel_text import (
    PARALLEL_NAMES,
    PairColumns,
    SourceTarget,
    read_pairs,
    resolve_pair_columns,
)
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError, UsageError

ROWS = [("one", "eins"), ("two, and more", "zwei"), ("three", "drei")]


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def table(path: Path, names: tuple[str, ...], rows: list[tuple[str, ...]] = ROWS) -> Path:  # type: ignore[assignment]
    values = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".csv":
        lines = [",".join(f'"{cell}"' for cell in row) for row in (names, *rows)]
        return write(path, "\n".join(lines))
    if path.suffix == ".tsv":
        return write(path, "\n".join("\t".join(row) for row in (names, *rows)))
    if path.suffix == ".jsonl":
        return write(path, "\n".join(json.dumps(value) for value in values))
    if path.suffix == ".json":
        return write(path, json.dumps(values, indent=1))
    arrow = pa.Table.from_pylist(values)
    if path.suffix == ".parquet":
        pq.write_table(arrow, path)
        return path
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, arrow.schema) as writer:
        writer.write_table(arrow)
    return path


def texts(pairs: list[SourceTarget]) -> list[tuple[str, str | None]]:
    return [(pair.source, pair.target) for pair in pairs]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow"])
@pytest.mark.parametrize("swapped", [False, True])
def test_named_columns_are_read_alike_in_every_format(
    tmp_path: Path, suffix: str, swapped: bool
) -> None:
    names = ("summary", "document") if swapped else ("document", "summary")
    path = table(tmp_path / f"x{suffix}", names)
    assert resolve_pair_columns(path) == PairColumns("document", "summary")
    found = texts(list(read_pairs(path)))
    assert found == ([(b, a) for a, b in ROWS] if swapped else ROWS)


@pytest.mark.parametrize("names", PARALLEL_NAMES)
def test_every_obvious_pair_is_found_among_other_columns(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    source, target = names[0].capitalize(), names[1].upper()
    path = table(tmp_path / "x.csv", ("id", target, "lang", source), [("1", "t", "en", "s")])
    assert resolve_pair_columns(path) == PairColumns(source, target)
    assert texts(list(read_pairs(path))) == [("s", "t")]


def test_the_first_of_several_obvious_pairs_is_taken_and_described(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", ("title", "text", "summary"), [("a", "b", "c")])
    columns = resolve_pair_columns(path)
    assert columns is not None
    assert columns.describe() == "source from column text, target from column summary"
    assert PairColumns("1", None).describe() == "source from column 1"


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (("en", "de"), {"source_column": "en", "target_column": "de"}, ("en", "de")),
        (("en", "de"), {"source_column": "de"}, ("de", "en")),
        (("en", "de"), {"target_column": "en"}, ("de", "en")),
        (("id", "story", "summary"), {"source_column": "story"}, ("story", "summary")),
        (("id", "article", "gist"), {"target_column": "gist"}, ("article", "gist")),
        (("text", "summary", "title"), {"target_column": "title"}, ("text", "title")),
        (("text", "summary", "answer"), {"source_column": "summary"}, ("summary", "answer")),
        (("source", "target", "x"), {"target_column": "x"}, ("source", "x")),
        (("source", "target"), {"source_column": "target"}, ("target", "source")),
    ],
)
def test_what_is_named_wins_and_the_rest_is_what_remains(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, str], expected: tuple[str, str]
) -> None:
    path = table(tmp_path / "x.csv", names, [tuple(f"in {name}" for name in names)])
    assert resolve_pair_columns(path, **options) == PairColumns(*expected)  # type: ignore[arg-type]
    found = list(read_pairs(path, **options))  # type: ignore[arg-type]
    assert texts(found) == [(f"in {expected[0]}", f"in {expected[1]}")]


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_two_columns_without_a_header_are_source_and_target(tmp_path: Path, suffix: str) -> None:
    separator = "\t" if suffix == ".tsv" else ","
    path = write(tmp_path / f"x{suffix}", f"Go.{separator}Geh.\nHi.{separator}Hallo.\n")
    assert resolve_pair_columns(path) == PairColumns("1", "2")
    assert list(read_pairs(path)) == [
        SourceTarget("Go.", "Geh.", f"{path}:1"),
        SourceTarget("Hi.", "Hallo.", f"{path}:2"),
    ]
    back = read_pairs(path, source_column="2")
    assert texts(list(back)) == [("Geh.", "Go."), ("Hallo.", "Hi.")]
    assert texts(list(read_pairs(path, need_target=False))) == [("Go.", None), ("Hi.", None)]


def test_columns_that_were_resolved_can_be_given_as_options(tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "x.tsv", "Go.\tGeh.\tCC-BY\n"),
        table(tmp_path / "y.tsv", ("src", "tgt", "licence"), [("Go.", "Geh.", "CC-BY")]),
    ):
        options = {"source_column": "1", "target_column": "2"} if path.stem == "x" else {}
        columns = resolve_pair_columns(path, **options)  # type: ignore[arg-type]
        assert columns is not None
        found = read_pairs(path, source_column=columns.source, target_column=columns.target)
        assert texts(list(found)) == [("Go.", "Geh.")]


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (("document", "summary"), {}, PairColumns("document", None)),
        (("text",), {}, PairColumns("text", None)),
        (("story",), {}, PairColumns("story", None)),
        (("id", "question"), {}, PairColumns("question", None)),
        (("id", "story"), {"source_column": "story"}, PairColumns("story", None)),
        (("text", "gist"), {"target_column": "gist"}, PairColumns("text", "gist")),
    ],
)
def test_a_target_that_is_not_needed_is_read_only_if_named(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, str], expected: PairColumns
) -> None:
    path = table(tmp_path / "x.jsonl", names, [tuple(f"in {name}" for name in names)])
    assert resolve_pair_columns(path, need_target=False, **options) == expected
    target = expected.target and f"in {expected.target}"
    found = list(read_pairs(path, need_target=False, **options))  # type: ignore[arg-type]
    assert texts(found) == [(f"in {expected.source}", target)]


def test_an_empty_text_and_null_keep_their_pair(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        '{"source": " a ", "target": null}\n\n{"source": "  ", "target": "b\\n"}\n',
    )
    assert list(read_pairs(path)) == [
        SourceTarget("a", "", f"{path}:1"),
        SourceTarget("", "b", f"{path}:3"),
    ]


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff"), max_size=8)


@given(
    rows=st.lists(st.tuples(LINE, LINE), min_size=1, max_size=8),
    ends=st.tuples(st.sampled_from(["\n", "\r\n"]), st.sampled_from(["\n", "\r\n"])),
    zipped=st.booleans(),
)
def test_aligned_lines_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    ends: tuple[str, str],
    zipped: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    files = [folder / "lines.en", folder / ("lines.de.gz" if zipped else "lines.de")]
    for path, lines, end in zip(files, zip(*rows, strict=True), ends, strict=True):
        content = "".join(line + end for line in lines).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    found = list(read_pairs(files[0], target_file=files[1]))
    assert texts(found) == [(source.strip(), target.strip()) for source, target in rows]
    assert [pair.where for pair in found] == [f"{files[0]}:{n + 1}" for n in range(len(rows))]
    alone = list(read_pairs(files[0], need_target=False))
    assert texts(alone) == [(source.strip(), None) for source, _ in rows]
    with_target = list(read_pairs(files[0], target_file=files[1], need_target=False))
    assert with_target == found


@pytest.mark.parametrize(("of_data", "of_target"), [(2, 3), (3, 1), (0, 2), (1, 0), (5, 9)])
def test_files_of_different_numbers_of_lines_are_both_counted(
    tmp_path: Path, of_data: int, of_target: int
) -> None:
    data = write(tmp_path / "x.en", "a\n" * of_data)
    target = write(tmp_path / "x.de", "b\n" * of_target)
    says = rf"x\.en has {of_data} lines and .*x\.de has {of_target}; line n of one"
    with pytest.raises(InputError, match=says):
        list(read_pairs(data, target_file=target))


def test_plain_text_without_targets_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "a\n")
    with pytest.raises(InputError, match=r"x\.txt is plain text and has no targets; give --target"):
        read_pairs(path)


def test_standard_input_is_a_source_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb\n")))
    assert list(read_pairs(Path("-"), need_target=False)) == [
        SourceTarget("a", None, "standard input:1"),
        SourceTarget("", None, "standard input:2"),
        SourceTarget("b", None, "standard input:3"),
    ]


def test_a_target_file_goes_with_plain_text_only(tmp_path: Path) -> None:
    text = write(tmp_path / "x.txt", "a\n")
    rows = table(tmp_path / "x.csv", ("source", "target"))
    with pytest.raises(
        UsageError, match=r"--target .*x\.txt goes with plain text.*x\.csv is a tab"
    ):
        read_pairs(rows, target_file=text)
    with pytest.raises(InputError, match=r"--target .*x\.csv is a table, and .*x\.txt is plain"):
        read_pairs(text, target_file=rows)


@pytest.mark.parametrize("option", ["source_column", "target_column"])
def test_columns_are_for_tables(tmp_path: Path, option: str) -> None:
    path = write(tmp_path / "x.txt", "a\n")
    assert resolve_pair_columns(path) is None
    says = rf"--{option.replace('_', '-')} 'text' is for tables, and .*x\.txt is plain text"
    with pytest.raises(UsageError, match=says):
        read_pairs(path, target_file=path, **{option: "text"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source_column": "sorce"}, "--source-column 'sorce'.*did you mean 'source'.*source, tar"),
        ({"target_column": "traget"}, "--target-column 'traget'.*did you mean 'target'"),
    ],
)
def test_a_missing_column_is_named_with_the_likely_one(
    tmp_path: Path, options: dict[str, str], says: str
) -> None:
    path = table(tmp_path / "x.jsonl", ("source", "target"))
    with pytest.raises(InputError, match=says):
        read_pairs(path, **options)  # type: ignore[arg-type]


def test_a_position_past_the_last_column_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "Go.\tGeh.\n")
    with pytest.raises(
        InputError, match=r"--target-column '3'.*numbered as it has no header, 1, 2"
    ):
        read_pairs(path, target_column="3")


def test_one_column_for_both_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", ("source", "target"))
    with pytest.raises(UsageError, match="are both 'source'; name two columns"):
        read_pairs(path, source_column="source", target_column="source")


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (("en", "de"), {}, "en, de: choose the source with --source-column and the target with"),
        (("a", "b", "c"), {"source_column": "b"}, r"b, c: choose the target with --target-column$"),
        (("a", "b", "c"), {"target_column": "b"}, r"b, c: choose the source with --source-column$"),
    ],
)  # fmt: skip
def test_columns_that_are_not_obvious_are_asked_about(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, str], says: str
) -> None:
    path = table(tmp_path / "x.jsonl", names, [names])
    with pytest.raises(UsageError, match=says):
        read_pairs(path, **options)  # type: ignore[arg-type]


def test_a_source_that_is_not_obvious_is_asked_about_alone(tmp_path: Path) -> None:
    path = table(tmp_path / "x.jsonl", ("en", "de"))
    with pytest.raises(
        UsageError, match=r"columns en, de: choose the source with --source-column$"
    ):
        read_pairs(path, need_target=False)


def test_three_columns_without_a_header_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "Go.\tGeh.\tCC-BY\n")
    with pytest.raises(
        UsageError, match=r"has 3 columns and no header.*-column 1 --target-column 2"
    ):
        read_pairs(path)
    with pytest.raises(
        UsageError, match=r"has 3 columns and no header.*--source-column 1; or give --header yes"
    ):
        read_pairs(path, need_target=False)


@pytest.mark.parametrize("content", ["text\na\n", "Go.\nHi.\n"])
def test_one_column_is_no_pair(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "x.tsv", content)
    with pytest.raises(InputError, match=r"x\.tsv has one column, and a pair needs two"):
        read_pairs(path)
    assert list(read_pairs(path, need_target=False))


def test_a_row_without_a_field_is_reported_at_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"source": "a", "target": "b"}\n\n{"source": "c"}\n')
    pairs = read_pairs(path)
    assert next(pairs).target == "b"
    with pytest.raises(InputError, match=r"x\.jsonl:3 has no target; fill it in or remove the row"):
        next(pairs)
    path = write(tmp_path / "x.json", '[{"source": "a", "target": "b"}, {"target": "c"}]')
    with pytest.raises(InputError, match=r"x\.json item 2 has no source"):
        list(read_pairs(path))
    assert texts(list(read_pairs(tmp_path / "x.jsonl", need_target=False))) == [
        ("a", None), ("c", None),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"de": "a"}])
def test_what_is_no_text_is_reported_at_its_line(tmp_path: Path, value: object) -> None:
    rows = [{"source": "a", "target": "b"}, {"source": "c", "target": value}]
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    says = f"x.jsonl:2: target is {type(value).__name__}, and a text was expected"
    with pytest.raises(InputError, match=rf"{re.escape(says)}.*--target-column"):
        list(read_pairs(path))
    with pytest.raises(InputError, match="choose another --source-column"):
        list(read_pairs(path, source_column="target", target_column="source"))


def test_a_number_in_parquet_is_reported_at_its_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"source": ["a"], "target": [1]}), path)
    with pytest.raises(InputError, match=r"x\.parquet row 1: target is int"):
        list(read_pairs(path))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_an_empty_table_has_no_rows(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="has no rows"):
        read_pairs(write(tmp_path / f"x{suffix}", "\n"))


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "source,target\n")
    with pytest.raises(InputError, match=r"x\.csv has no rows; give a file with pairs"):
        list(read_pairs(path))
    empty = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"source": pa.array([], pa.string()), "target": pa.array([], "str")}), empty
    )
    with pytest.raises(InputError, match=r"x\.parquet has no rows"):
        list(read_pairs(empty))


def test_empty_text_files_have_no_pairs(tmp_path: Path) -> None:
    data, target = write(tmp_path / "x.en", ""), write(tmp_path / "x.de", "")
    with pytest.raises(InputError, match=r"x\.en and .*x\.de have no lines"):
        list(read_pairs(data, target_file=target))
    with pytest.raises(InputError, match=r"x\.en has no lines"):
        list(read_pairs(data, need_target=False))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "x.en", "a\n")
    with pytest.raises(InputError, match=r"x\.de: no such file"):
        list(read_pairs(data, target_file=tmp_path / "x.de"))
    with pytest.raises(InputError, match=r"y\.csv: no such file"):
        read_pairs(tmp_path / "y.csv")


def test_a_byte_that_is_not_utf8_is_reported_or_replaced(tmp_path: Path) -> None:
    data, target = write(tmp_path / "x.en", "a\n"), tmp_path / "x.de"
    target.write_bytes(b"b\xff\n")
    with pytest.raises(InputError, match=r"x\.de: byte 0xff at offset 1 is not UTF-8"):
        list(read_pairs(data, target_file=target))
    found = read_pairs(data, target_file=target, reading=ReadOptions(errors="replace"))
    assert texts(list(found)) == [("a", "b\ufffd")]
