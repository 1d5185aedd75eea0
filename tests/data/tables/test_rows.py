"""Rows of tables: columns of one name, dialects, headers that come again, layouts of JSON."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmctl.data.tables import columnar
from llmctl.data.tables.labelled import LABELLED_COLUMNS, Columns, read_examples, resolve_columns
from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def values(path: Path, **options: object) -> list[dict[str, object]]:
    return [row.values for row in RowReader(path, known=LABELLED_COLUMNS, **options)]  # type: ignore[arg-type]


def doubled(path: Path) -> Path:
    """A table with two columns called text."""
    table = pa.Table.from_arrays(
        [pa.array(["hi", "ho"]), pa.array(["you", "me"]), pa.array(["a", "b"])],
        names=["text", "text", "label"],
    )
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    else:
        rows = [table.column_names, *zip(*(c.to_pylist() for c in table.columns), strict=True)]
        separator = "," if path.suffix == ".csv" else "\t"
        write(path, "".join(separator.join(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow"])
def test_of_two_columns_of_one_name_one_is_chosen_by_position(tmp_path: Path, suffix: str) -> None:
    path = doubled(tmp_path / f"x{suffix}")
    for options in ({}, {"text_column": "text"}):
        with pytest.raises(
            InputError,
            match=r"several columns called 'text' \(columns 1 and 2\).*--text-column 1",
        ):
            resolve_columns(path, need_label=True, **options)  # type: ignore[arg-type]
    for position, texts in (("1", ["hi", "ho"]), ("2", ["you", "me"])):
        columns = resolve_columns(path, need_label=True, text_column=position)
        assert columns == Columns((f"text (column {position})",), None, "label")
        found = list(read_examples(path, columns))
        assert [(e.text, e.label) for e in found] == [(texts[0], "a"), (texts[1], "b")]
    assert [row["label"] for row in values(path)] == ["a", "b"]


def test_columns_that_differ_in_capitals_only_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "Text,text,label\na b,c d,0\n")
    with pytest.raises(InputError, match=r"several columns called 'text'.*by its name"):
        resolve_columns(path, need_label=True)
    assert resolve_columns(path, need_label=True, text_column="text").text == ("text",)


def test_columns_of_one_name_that_nobody_asks_for_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "id,id,text,label\n1,2,a b,0\n")
    assert resolve_columns(path, need_label=True) == Columns(("text",), None, "label")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_positions_are_columns_in_tables_with_names_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        write(path, "text,label\na b,0\n")
    else:
        pq.write_table(pa.table({"text": ["a b"], "label": ["0"]}), path)
    assert RowReader(path, known=LABELLED_COLUMNS).column("--text-column", "2") == "label"
    with pytest.raises(InputError, match=r"--text-column '3': .* no such column"):
        RowReader(path, known=LABELLED_COLUMNS).column("--text-column", "3")


@pytest.mark.parametrize(
    ("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
)
def test_a_csv_that_is_divided_by_something_else_is_read_and_said(
    tmp_path: Path, delimiter: str, name: str
) -> None:
    notes: list[str] = []
    out = io.StringIO()
    rows = [["text", "label"], ["a, b; c", "0"], ['she said "no"', "1"]]
    csv.writer(out, delimiter=delimiter).writerows(rows)
    path = write(tmp_path / "x.csv", out.getvalue())
    found = values(path, reading=ReadOptions(note=notes.append))
    assert [list(row.values()) for row in found] == rows[1:]
    assert notes == [f"{path}: its fields are divided by {name}, not by commas"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_comma_in_each_text_divides_no_fields(tmp_path: Path, delimiter: str) -> None:
    rows = [["text", "label"], *([f"the {n}, and more", str(n % 2)] for n in range(40))]
    path = write(tmp_path / "x.csv", "".join(f"{delimiter.join(row)}\n" for row in rows))
    assert [list(row.values()) for row in values(path)] == rows[1:]


def test_rows_with_too_many_tabs_are_told_by_their_line(tmp_path: Path) -> None:
    """The STS benchmark's files have two more fields in a seventh of their rows."""
    lines = [f"a\t{n}\tone{', two' * (n % 2)}" + "\tmore\tmore" * (n % 7 == 3) for n in range(40)]
    path = write(tmp_path / "x.csv", "\n".join(lines))
    with pytest.raises(InputError, match=r"x\.csv:4 has 5 fields where the first row has 3"):
        list(RowReader(path, known=LABELLED_COLUMNS))
    # Semicolons, of which sentences have some, too.
    texts = [f"it {n}; is{'; so' * (n % 3)}" for n in range(40)]
    path = write(tmp_path / "y.csv", "\n".join(["text", *texts]))
    assert [row["text"] for row in values(path)] == texts


@pytest.mark.parametrize("content", ["text\na; b\nc, d\n", "label,text\n0,a;b\n1,c;d\n"])
def test_commas_divide_where_they_can(tmp_path: Path, content: str) -> None:
    notes: list[str] = []
    path = write(tmp_path / "x.csv", content)
    assert RowReader(
        path, known=LABELLED_COLUMNS, reading=ReadOptions(note=notes.append)
    ).columns == (content.partition("\n")[0].split(","))
    assert not notes


CELL = st.text(st.sampled_from('ab"\n\t ,;é'), max_size=6)


@given(
    rows=st.lists(st.tuples(st.sampled_from("01"), CELL), min_size=1, max_size=8),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_a_tsv_with_a_writers_quotes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], quoting: int
) -> None:
    """As pandas writes it: quotes around what needs them, doubled inside."""
    out = io.StringIO()
    csv.writer(out, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(  # type: ignore[arg-type]
        [("label", "text"), *rows]
    )
    # Where texts with line ends happen to be rows themselves, they are taken for such.
    lines = out.getvalue().split("\n")[:-1]
    assume(any(line.count("\t") != 1 for line in lines if line) or len(lines) == len(rows) + 1)
    path = write(tmp_path_factory.getbasetemp() / "quoted.tsv", out.getvalue())
    assert [tuple(row.values()) for row in values(path)] == rows


@pytest.mark.parametrize(
    "texts",
    [['"Hi" she said', '5" disk'], ['"To be or not to be"', "that is it"], ['"', "a"],
     ['"open', 'close"'], ['a "b" c'], ['""', "x"]],
)  # fmt: skip
def test_quotes_that_are_text_stay_in_a_tsv(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path / "x.tsv", "label\ttext\n" + "".join(f"0\t{text}\n" for text in texts))
    assert [row["text"] for row in values(path)] == texts


def test_a_header_that_comes_again_is_left_out_and_counted(tmp_path: Path) -> None:
    notes: list[str] = []
    part = "text,label\na b,0\nc d,1\n"
    path = write(tmp_path / "x.csv", part * 3)
    found = values(path, reading=ReadOptions(note=notes.append))
    assert [row["label"] for row in found] == ["0", "1"] * 3
    assert notes == [f"left out 2 rows that repeat the header of {path} (the first: line 4)"]
    # Of one column it may be a text.
    assert len(values(write(tmp_path / "y.csv", "text\na\ntext\n"))) == 2


def test_a_csv_with_carriage_returns_alone_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label\ra b,0\rc d,1\r")
    assert [row["text"] for row in values(path)] == ["a b", "c d"]
    path = write(tmp_path / "x.tsv", "text\tlabel\na\rb\t0\n")
    assert values(path) == [{"text": "a\nb", "label": "0"}]
    path = write(tmp_path / "y.csv", 'text,label\n"a\rb",0\nc\rd,1\n')
    with pytest.raises(InputError, match=r"y\.csv:\d: the row that begins here can't be read"):
        values(path)


def test_columns_are_those_of_all_first_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"label": 0}\n{"text": "a", "label": 1}\n')
    columns = resolve_columns(path, need_label=True)
    assert columns == Columns(("text",), None, "label")
    assert [(e.text, e.label) for e in read_examples(path, columns)] == [("", "0"), ("a", "1")]


ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("document", "expected", "said"),
    [
        (ROWS, ROWS, []),
        ({"data": ROWS, "version": "1"}, ROWS, ["rows from its field data"]),
        ({"rows": ROWS}, ROWS, ["rows from its field rows"]),
        (ROWS[0], ROWS[:1], []),
        ({"messages": [{"role": "user", "content": "a"}]},
         [{"messages": [{"role": "user", "content": "a"}]}], []),
    ],
)  # fmt: skip
def test_json_documents_of_several_layouts_are_read(
    tmp_path: Path, document: object, expected: object, said: list[str], indent: int | None
) -> None:
    notes: list[str] = []
    path = write(tmp_path / "x.json", json.dumps(document, indent=indent))
    assert values(path, reading=ReadOptions(note=notes.append)) == expected
    assert notes == [f"{path}: {note}" for note in said]


def test_a_json_document_of_several_tables_is_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", json.dumps({"train": ROWS, "test": ROWS}, indent=1))
    with pytest.raises(InputError, match=r"holds several lists of objects \(train, test\)"):
        values(path)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_short_floats_are_the_decimals_that_they_are_written_as(
    tmp_path: Path, kind: pa.DataType
) -> None:
    numbers = [0.1, 0.25, -1.7, None, 3.0]
    array = pa.array(numbers, pa.float64()).cast(kind, safe=False)
    pq.write_table(pa.table({"text": ["t"] * 5, "label": array}), tmp_path / "x.parquet")
    assert [row["label"] for row in values(tmp_path / "x.parquet")] == numbers


def test_long_rows_of_parquet_are_read_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "BATCH_BYTES", 1 << 20)
    text = "word " * 20_000
    table = pa.table({"text": [f"{n} {text}" for n in range(200)]})
    # A page has as many rows as its writer takes at a time, and is decoded as a whole.
    pq.write_table(table, tmp_path / "x.parquet", write_batch_size=4)
    reader = RowReader(tmp_path / "x.parquet")
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    most = 0
    for count, row in enumerate(reader, 1):
        assert row.values["text"].startswith(f"{count - 1} ")
        most = max(most, pa.total_allocated_bytes() - before)
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200
    assert traced < 6 << 20
    assert most < 12 << 20  # of 20 MB


def test_a_cell_that_would_take_gigabytes_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = csv.field_size_limit(1000)
    try:
        path = tmp_path / "x.csv.gz"
        path.write_bytes(gzip.compress(b'text\n"' + b"word\n" * 1000 + b'"\n'))
        with pytest.raises(InputError, match=r"x\.csv\.gz:2: the row that begins here"):
            values(path)
    finally:
        csv.field_size_limit(limit)


def test_half_a_character_within_a_list_is_named(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"choices": ["a", {"b": ["\\ud800"]}]}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:1: choices\[1\]\.b\[0\] has half of"):
        list(RowReader(path))
