"""The header of a table: told from an example by what stands in the file."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.tables.header import Verdict, judge
from llmctl.data.tables.labelled import LABELLED_COLUMNS, Columns, read_examples, resolve_columns
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError

NAMES = ["v1", "cls", "is_spam", "Category", "status", "标签", "Score", "y", "gold label"]
TEXTS = ["v2", "msg", "Message", "statement", "Phrase", "内容", "x", "raw_text"]
LABELS = [["ham", "spam"], ["0", "1"], ["Anxiety", "Normal", "Depression"], ["正面", "负面"],
          ["1", "2", "3", "4", "5"], ["topic", "label", "review"], ["-1", "0", "1"]]  # fmt: skip
WORDS = [
    "the",
    "a",
    "film",
    "plot",
    "hotel",
    "was",
    "is",
    "not",
    "very",
    "good",
    "bad",
    "room",
    "好",
    "很",
    "I",
    "we",
    "text",
    "label",
]


def texts(count: int, seed: int) -> list[str]:
    """Sentences as people write them."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS, k=draw.randint(3, 25))) + draw.choice(["", ".", "!"])
        for _ in range(count)
    ]


def table(labels: list[str], rows: int, seed: int, first: int) -> list[list[str]]:
    draw = random.Random(seed + 1)
    columns = [[draw.choice(labels) for _ in range(rows)], texts(rows, seed)]
    return [[columns[first][n], columns[1 - first][n]] for n in range(rows)]


@given(
    labels=st.sampled_from(LABELS),
    name=st.sampled_from(NAMES),
    text=st.sampled_from(TEXTS),
    rows=st.integers(20, 80),
    seed=st.integers(0, 10**6),
    first=st.integers(0, 1),
)
def test_unknown_names_are_a_header_and_examples_are_none(
    labels: list[str], name: str, text: str, rows: int, seed: int, first: int
) -> None:
    data = table(labels, rows, seed, first)
    header = [name, text] if first == 0 else [text, name]
    assert judge([header, *data], LABELLED_COLUMNS).is_header
    # Each label comes again in so many rows, but for a seldom draw.
    column = [row[first] for row in data]
    if column.count(column[0]) > 1:
        assert not judge(data, LABELLED_COLUMNS).is_header


@given(rows=st.integers(1, 60), seed=st.integers(0, 10**6), ordered=st.booleans())
def test_pairs_without_a_header_keep_their_first_row(rows: int, seed: int, ordered: bool) -> None:
    """Sorted by length, too, as published translations are: short ones stand together."""
    draw = random.Random(seed)
    short = [[draw.choice(["go", "hi", "run", "ok"]), draw.choice(["va", "salut", "cours"])]
             for _ in range(8)]  # fmt: skip
    data = [*map(list, zip(texts(rows, seed), texts(rows, seed + 7), strict=True))]
    data = [*short, *sorted(data, key=lambda row: len(row[0]))] if ordered else data
    # Once in so many draws the first row is odd, as a header would be: alone in what comes again.
    alone = any([row[at] for row in short].count(short[0][at]) == 1 for at in (0, 1))
    first_is_odd = alone if ordered else not data[0][0].endswith((".", "!"))
    if not first_is_odd:
        assert not judge(data, LABELLED_COLUMNS).is_header


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Known names are plain, whatever stands below.
        ([["label", "text"], ["a", "b"]], Verdict(True, True)),
        ([["text"], ["some text"]], Verdict(True, True)),
        ([["label", "text"]], Verdict(True, True)),
        ([["a", "b"]], Verdict(False, True)),
        # A known name by chance: its label comes again.
        ([["topic", "one text"], ["news", "two"], ["topic", "three"], ["news", "four"]],
         Verdict(False, False)),
        # pandas writes these for columns without names, and an index before them.
        ([["0", "1"], ["ham", "hello you"], ["spam", "win now"]], Verdict(True, False)),
        ([["", "0", "1"], ["0", "ham", "hello you"], ["1", "spam", "win now"]],
         Verdict(True, False)),
        # A word over numbers.
        ([["msg", "y"], ["win a prize", "1"], ["hello you", "0"]], Verdict(True, False)),
        ([["msg", "y"], ["win a prize", "1"], ["hello you", ""], ["and", "-2.5"]],
         Verdict(True, False)),
        # Too few rows to tell by words alone.
        ([["v1", "v2"], ["ham", "hello you"]], Verdict(False, True)),
        ([["a", "b"], ["c", "d"], ["e", "f"]], Verdict(False, True)),
        # Numbers and sentences name nothing.
        ([["3", "A fine film."], ["4", "Another one."]], Verdict(False, True)),
        # Odd, but a sentence: an example whose label comes once, or a name that is a question.
        ([["What is it?", "Kind"], *[[f"text {n}", "ab"[n % 2]] for n in range(30)]],
         Verdict(False, False)),
        # A question as a name beside a known one, over labels that come again.
        ([["label", "What do you think of it?"], *[[str(n % 2), f"text {n}"] for n in range(30)]],
         Verdict(True, False)),
    ],
)  # fmt: skip
def test_first_rows_by_hand(rows: list[list[str]], expected: Verdict) -> None:
    assert judge(rows, LABELLED_COLUMNS) == expected


def write(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


SPAM = [["ham" if n % 4 else "spam", f"message number {n}"] for n in range(12)]


@pytest.mark.parametrize(
    "options", [{}, {"label_column": "1", "text_column": "2"}, {"label_column": "v1"}]
)
def test_a_header_of_unknown_names_is_no_example(tmp_path: Path, options: dict[str, str]) -> None:
    notes: list[str] = []
    path = write(tmp_path / "x.csv", [["v1", "v2"], *SPAM])
    reading = ReadOptions(note=notes.append)
    columns = resolve_columns(path, need_label=True, reading=reading, **options)  # type: ignore[arg-type]
    assert columns == Columns(("v2",), None, "v1")
    found = list(read_examples(path, columns, reading=reading))
    assert [[example.label, example.text] for example in found] == SPAM
    said = f"{path}: the first row (v1, v2) was taken for a header; give --header no if it is an "
    assert notes == ([] if "v1" in options.values() else [f"{said}example"])


def test_the_option_decides_whatever_stands_there(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [["v1", "v2"], *SPAM])
    reading = ReadOptions(header="no")
    columns = resolve_columns(path, need_label=True, reading=reading)
    assert columns == Columns(("2",), None, "1")
    assert next(read_examples(path, columns, reading=reading)).label == "v1"
    with pytest.raises(InputError, match=r"'v1'.* numbered as it has no header, 1, 2"):
        resolve_columns(path, label_column="v1", need_label=True, reading=reading)
    path = write(tmp_path / "y.csv", SPAM)
    reading = ReadOptions(header="yes")
    columns = resolve_columns(path, text_column="2", need_label=False, reading=reading)
    assert columns.text == ("message number 0",)
    assert len(list(read_examples(path, columns, reading=reading))) == len(SPAM) - 1


def test_a_first_label_that_is_a_known_name_is_an_example_and_said(tmp_path: Path) -> None:
    notes: list[str] = []
    rows = [["topic" if n % 3 == 0 else "sports", f"text number {n} of some"] for n in range(12)]
    path = write(tmp_path / "x.csv", rows)
    reading = ReadOptions(note=notes.append)
    columns = resolve_columns(path, need_label=True, reading=reading)
    assert columns == Columns(("2",), None, "1")
    assert len(list(read_examples(path, columns, reading=reading))) == 12
    assert "was taken for an example; give --header yes" in notes[0]


def test_nameless_columns_beside_two_named_ones_are_no_candidates(tmp_path: Path) -> None:
    """The SMS spam collection has three of them, an index that pandas wrote one."""
    rows = [[*row, "", "", ""] for row in SPAM]
    path = write(tmp_path / "spam.csv", [["v1", "v2", "", "", ""], *rows])
    assert resolve_columns(path, need_label=True) == Columns(("v2",), None, "v1")
    rows = [[str(n), text, label] for n, (label, text) in enumerate(SPAM)]
    path = write(tmp_path / "index.csv", [["", "statement", "status"], *rows])
    assert resolve_columns(path, need_label=True) == Columns(("statement",), None, "status")
