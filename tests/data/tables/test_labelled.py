"""Labelled texts: which columns are chosen, what labels become, and what bad tables get."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.tables.labelled import Columns, Example, read_examples, resolve_columns
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError, UsageError

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the data set {name} is not there")
    return path


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def choose(path: Path, *, need_label: bool = True, **options: str) -> Columns:
    return resolve_columns(path, need_label=need_label, **options)  # type: ignore[arg-type]


def read(path: Path, *, need_label: bool = True, **options: str) -> list[Example]:
    return list(read_examples(path, choose(path, need_label=need_label, **options)))


HEADERS = [
    (["label", "text"], Columns(("text",), None, "label")),
    (["Text", "Label"], Columns(("Text",), None, "Label")),
    (["label", "review"], Columns(("review",), None, "label")),
    (["id", "sentence", "label"], Columns(("sentence",), None, "label")),
    (["class", "title", "description"], Columns(("description",), None, "class")),
    (["sentence1", "sentence2", "label"], Columns(("sentence1",), "sentence2", "label")),
    (["idx", "Premise", "Hypothesis", "label"], Columns(("Premise",), "Hypothesis", "label")),
    (["question", "sentence", "label"], Columns(("question",), "sentence", "label")),
    (["question1", "question2", "target"], Columns(("question1",), "question2", "target")),
    (["stars", "what they said"], Columns(("what they said",), None, "stars")),
    (["label", "category", "text"], Columns(("text",), None, "label")),
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow"])
@pytest.mark.parametrize(("names", "expected"), HEADERS, ids=lambda v: str(v)[:30])
def test_named_columns_are_chosen_alike_in_every_format(
    tmp_path: Path, suffix: str, names: list[str], expected: Columns
) -> None:
    rows = [{name: f"{name} {n}" for name in names} for n in range(3)]
    path = tmp_path / f"rows{suffix}"
    if suffix in (".csv", ".tsv"):
        separator = "," if suffix == ".csv" else "\t"
        lines = [separator.join(names), *(separator.join(row.values()) for row in rows)]
        write(path, "\n".join(lines))
    elif suffix == ".jsonl":
        write(path, "\n".join(json.dumps(row) for row in rows))
    elif suffix == ".json":
        write(path, json.dumps(rows, indent=1))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert choose(path) == expected
    examples = read(path)
    assert [e.text for e in examples] == [row[expected.text[0]] for row in rows]
    assert [e.label for e in examples] == [row[expected.label or ""] for row in rows]
    if expected.text_pair:
        assert [e.text_pair for e in examples] == [row[expected.text_pair] for row in rows]
    else:
        assert [e.text_pair for e in examples] == [None] * 3


def test_named_options_win_over_what_would_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "label,topic,text,title\n1,a,long,short\n")
    columns = choose(path, label_column="topic", text_column="title,text", text_pair_column="label")
    assert columns == Columns(("title", "text"), "label", "topic")
    assert list(read_examples(path, columns)) == [Example("short long", "1", "a", f"{path}:2")]


@pytest.mark.parametrize("swap", [False, True])
def test_without_a_header_the_column_of_few_values_is_the_label(tmp_path: Path, swap: bool) -> None:
    rows = [(str(n % 3), f"text number {n}") for n in range(60)]
    lines = [f"{b}\t{a}" if swap else f"{a}\t{b}" for a, b in rows]
    path = write(tmp_path / "x.tsv", "\n".join(lines))
    assert choose(path) == Columns(("1",) if swap else ("2",), None, "2" if swap else "1")
    assert [(e.label, e.text) for e in read(path)] == rows


def test_of_few_rows_the_much_shorter_column_is_the_label(tmp_path: Path) -> None:
    content = "a fine film to watch\t1\nthe plot makes no sense\t0\nit is great fun for all\t1\n"
    assert choose(write(tmp_path / "x.tsv", content)) == Columns(("1",), None, "2")


@pytest.mark.parametrize("rows", ["one fine film\tpos\n", "a\tb\nc\td\n", "17\tsome\n18\ttext\n"])
def test_where_the_values_do_not_tell_the_columns_are_asked_for(tmp_path: Path, rows: str) -> None:
    path = write(tmp_path / "x.tsv", rows)
    with pytest.raises(UsageError, match=r"x\.tsv has 2 columns and no header.*--label-column 1"):
        choose(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("name", ["is_spam", "标签", "Sentiment (gold)"])
def test_beside_a_text_a_column_of_few_values_is_the_label(
    tmp_path: Path, suffix: str, name: str
) -> None:
    rows = [(f"text number {n} of a file", "spam" if n % 3 else "ham") for n in range(30)]
    lines = [f"text,{name}", *(",".join(row) for row in rows)]
    if suffix == ".jsonl":
        lines = [json.dumps(dict(zip(("text", name), row, strict=True))) for row in rows]
    path = write(tmp_path / f"x{suffix}", "\n".join(lines))
    assert choose(path) == Columns(("text",), None, name)
    assert [(e.text, e.label) for e in read(path)] == rows


def test_a_title_is_no_label_though_one_comes_twice(tmp_path: Path) -> None:
    rows = [f"title {max(n, 1)},the body of number {n} is much longer than it" for n in range(30)]
    path = write(tmp_path / "x.csv", "\n".join(["title,body", *rows]))
    with pytest.raises(InputError, match=r"no label column; it has title, body"):
        choose(path)
    # Nor is a text whose values are few.
    rows = [f"{'yes' if n % 2 else 'no'},a longer remark with the number {n}" for n in range(30)]
    path = write(tmp_path / "y.csv", "\n".join(["text,remark", *rows]))
    with pytest.raises(InputError, match=r"no label column; it has text, remark"):
        choose(path)


def test_one_column_has_no_label_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a text\nanother\n")
    with pytest.raises(UsageError, match=r"has one column \(a text\), and a label beside its text"):
        choose(path)


def test_an_unlabelled_guess_takes_the_longer_column(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "a very long text\t1\nshort but not so\t0\n")
    assert choose(path, need_label=False).text == ("1",)


def test_positions_of_a_file_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", '1,"a, b",c\n2,d,e\n')
    columns = choose(path, label_column="1", text_column="3,2")
    assert columns == Columns(("3", "2"), None, "1")
    assert [(e.label, e.text, e.source) for e in read_examples(path, columns)] == [
        ("1", "c a, b", f"{path}:1"),
        ("2", "e d", f"{path}:2"),
    ]


@pytest.mark.parametrize(
    ("value", "label"),
    [("pos", "pos"), (" pos ", "pos"), (3, "3"), (0, "0"), (-1, "-1"), (1.0, "1"), (0.5, "0.5"),
     (True, "True"), (False, "False"), ("1.0", "1"), ("-2.0", "-2"),
     ("1.05", "1.05"), ("v1.0", "v1.0"), ("真", "真"), (10**20, str(10**20))],
)  # fmt: skip
def test_labels_of_any_kind_are_named_by_their_text(
    tmp_path: Path, value: object, label: str
) -> None:
    path = write(tmp_path / "x.jsonl", json.dumps({"text": "t", "label": value}))
    assert [e.label for e in read(path)] == [label]


@pytest.mark.parametrize(
    ("kind", "values", "labels"),
    [
        (pa.int8(), [0, 1], ["0", "1"]),
        (pa.float32(), [0.0, 1.0], ["0", "1"]),
        (pa.bool_(), [False, True], ["False", "True"]),
        (pa.large_string(), ["no", "yes"], ["no", "yes"]),
        (pa.dictionary(pa.int8(), pa.string()), ["no", "yes"], ["no", "yes"]),
    ],
)
def test_parquet_labels_of_any_kind(
    tmp_path: Path, kind: pa.DataType, values: list[Any], labels: list[str]
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": pa.array(values, kind)}), path)
    assert [e.label for e in read(path)] == labels


def test_a_column_that_is_not_asked_for_may_be_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    # Years after 9999 are no datetime.
    far = pa.array([10**15, None], pa.timestamp("ms"))
    pq.write_table(pa.table({"when": far, "text": ["a", "b"], "label": [0, 1]}), path)
    with pytest.raises(OverflowError):
        pq.read_table(path).to_pylist()
    assert [(e.text, e.label) for e in read(path)] == [("a", "0"), ("b", "1")]
    with pytest.raises(InputError, match="can't be read as Parquet"):
        read(path, label_column="when")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@given(rows=st.lists(st.tuples(CELLS.filter(str.strip), CELLS), min_size=1, max_size=6))
def test_what_csv_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("label", "text"), *rows])
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_bytes(out.getvalue().encode())
    found = [(e.label, e.text) for e in read(path)]
    assert found == [(label.strip(), text.strip()) for label, text in rows]


def test_a_field_too_many_or_too_few_is_reported_at_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'label,text\n0,"two\nlines"\n\n1,a,b\n')
    with pytest.raises(InputError, match=r"x\.csv:5 has 3 fields where the first row has 2"):
        read(path)
    path = write(tmp_path / "x.tsv", "label\ttext\n0\ta\n1\n")
    with pytest.raises(InputError, match=r"x\.tsv:3 has 1 fields where the first row has 2"):
        read(path)


def test_a_quote_in_a_tsv_is_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", 'label\ttext\n0\t"Hi" she said\n1\t5" disk\n')
    assert [e.text for e in read(path)] == ['"Hi" she said', '5" disk']


def test_a_quote_that_is_never_closed_is_reported_where_it_opens(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'label,text\n0,good\n1,"open\n0,swallowed\n1,too\n')
    with pytest.raises(InputError, match=r"x\.csv:3: .*check its quotes"):
        read(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_column": "lable"}, "--label-column 'lable'.*did you mean 'label'.*label, text"),
        ({"text_column": "txet"}, "--text-column 'txet'.*did you mean 'text'"),
        ({"text_column": "text,zzz"}, "--text-column 'zzz'"),
        ({"text_pair_column": "texts"}, "--text-pair-column 'texts'.*did you mean 'text'"),
    ],
)
def test_a_missing_column_is_named_with_the_likely_one(
    tmp_path: Path, options: dict[str, str], says: str
) -> None:
    path = write(tmp_path / "x.csv", "label,text\n0,a\n")
    with pytest.raises(InputError, match=says):
        choose(path, **options)


def test_a_table_without_a_label_column_says_which_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": "a", "lbel": 1}\n')
    with pytest.raises(InputError, match=r"did you mean 'lbel'.*text, lbel.*--label-column"):
        choose(path)
    assert choose(path, need_label=False) == Columns(("text",), None, None)


def test_a_position_past_the_last_column_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "0,a\n1,b\n")
    with pytest.raises(InputError, match=r"--label-column '3'.*numbered as it has no header, 1, 2"):
        choose(path, label_column="3", text_column="2")


def test_several_text_columns_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "label,left,right\n0,a,b\n")
    with pytest.raises(UsageError, match=r"label, left, right.*--text-column"):
        choose(path)


@pytest.mark.parametrize("missing", ['""', "null", '"  "'])
def test_a_row_without_its_label_is_reported_at_its_line(tmp_path: Path, missing: str) -> None:
    path = write(
        tmp_path / "x.jsonl", f'{{"text": "a", "label": 1}}\n\n{{"text": "b", "label": {missing}}}'
    )
    with pytest.raises(InputError, match=r"x\.jsonl:3 has no label"):
        read(path)


def test_a_blank_text_is_an_example_too(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "label,text\n0,  \n1,a\n")
    assert [e.text for e in read(path)] == ["", "a"]
    assert [e.text for e in read(path, need_label=False)] == ["", "a"]


def test_labels_are_the_same_in_every_format(tmp_path: Path) -> None:
    values = [1.0, 0.0, -3.0, 2.5]
    files = [tmp_path / f"x{suffix}" for suffix in (".csv", ".jsonl", ".parquet")]
    files[0].write_text("label,text\n" + "".join(f"{value},t\n" for value in values))
    files[1].write_text("".join(json.dumps({"label": v, "text": "t"}) + "\n" for v in values))
    pq.write_table(pa.table({"label": values, "text": ["t"] * 4}), files[2])
    for path in files:
        assert [e.label for e in read(path)] == ["1", "0", "-3", "2.5"]


@pytest.mark.parametrize("value", [["a"], {"a": 1}, []])
def test_a_label_that_is_several_is_refused(tmp_path: Path, value: object) -> None:
    path = write(tmp_path / "x.jsonl", json.dumps({"text": "t", "label": value}))
    with pytest.raises(InputError, match=r"x\.jsonl:1: label is .* one label a row"):
        read(path)


def test_bytes_are_no_label(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["t"], "label": [b"pos"]}), path)
    with pytest.raises(InputError, match=r"row 1: label is bytes"):
        read(path)


def test_not_a_number_is_a_missing_label(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}), path)
    with pytest.raises(InputError, match=r"x\.parquet row 2 has no label"):
        read(path)


def test_a_label_column_that_is_not_needed_may_be_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "label,review\n,good\n,bad\n")
    columns = choose(path, need_label=False)
    assert columns == Columns(("review",), None, None)
    assert [(e.text, e.label) for e in read_examples(path, columns)] == [
        ("good", None), ("bad", None),
    ]  # fmt: skip
    assert choose(path, need_label=False, label_column="label").label == "label"


def test_a_text_that_is_a_number_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": "a", "label": 1}\n{"text": 5, "label": 1}')
    with pytest.raises(InputError, match=r"x\.jsonl:2.*5.*--text-column"):
        read(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_an_empty_table_has_no_rows(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="has no rows"):
        choose(write(tmp_path / f"x{suffix}", "\n"))


def test_a_missing_table_is_reported(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet", ".arrow"):
        with pytest.raises(InputError, match="no such file"):
            choose(tmp_path / f"x{suffix}")


def test_plain_text_is_a_text_a_line_and_has_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "one, two\r\n\n  three \n")
    with pytest.raises(InputError, match="plain text and has no labels"):
        choose(path)
    assert read(path, need_label=False) == [
        Example("one, two", None, None, f"{path}:1"),
        Example("", None, None, f"{path}:2"),
        Example("three", None, None, f"{path}:3"),
    ]


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_standard_input_is_a_text_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, "eins\r\n\n zwölf\n".encode())
    found = read(Path("-"), need_label=False)
    assert [(e.text, e.source) for e in found] == [
        ("eins", "standard input:1"),
        ("", "standard input:2"),
        ("zwölf", "standard input:3"),
    ]


def test_a_bad_byte_on_standard_input_is_reported_at_its_offset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin(monkeypatch, b"one\ntwo \xff\n")
    with pytest.raises(InputError, match="standard input: byte 0xff at offset 8 is not UTF-8"):
        read(Path("-"), need_label=False)
    stdin(monkeypatch, b"one\ntwo \xff\n")
    columns = choose(Path("-"), need_label=False)
    found = read_examples(Path("-"), columns, reading=ReadOptions(errors="replace"))
    assert [e.text for e in found] == ["one", "two \ufffd"]


def test_ag_news_needs_its_columns_named() -> None:
    path = real("ag_news/news.csv")
    with pytest.raises(UsageError, match=r"has 3 columns and no header.*--text-column 2,3"):
        choose(path)
    found = read(path, label_column="1", text_column="2,3")
    assert Counter(e.label for e in found) == dict.fromkeys("1234", 1900)
    assert found[0].text.startswith("Fears for T N pension after talks Unions representing workers")


def test_dbpedia_is_read_without_options() -> None:
    path = real("dbpedia/train.csv")
    assert choose(path) == Columns(("2",), None, "1")
    assert Counter(e.label for e in read(path)) == {str(n): 1000 for n in range(14)}


def test_sst2_is_read_without_options() -> None:
    for part, rows in (("train", 6920), ("dev", 872), ("test", 1821)):
        path = real(f"sst2/{part}.tsv")
        assert choose(path) == Columns(("1",), None, "2")
        found = read(path)
        assert (len(found), {e.label for e in found}) == (rows, {"0", "1"})


def test_chnsenticorp_is_read_without_options() -> None:
    path = real("chnsenticorp/reviews.csv")
    assert choose(path) == Columns(("review",), None, "label")
    found = read(path)
    assert len(found) == 7766
    # The set as published.
    assert Counter(e.label for e in found) == {"1": 5322, "0": 2444}
