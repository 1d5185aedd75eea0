"""Labelled texts: the rows of a table as examples for classification.

Columns are named, or numbered from 1. Where the choice is obvious it is made; where it isn't, the
error says which options to give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.text.decoding import DEFAULT, ReadOptions, text_lines
from llmctl.data.text.files import by_lower, is_table, named, split_columns
from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.parsing import Malformed, parse_json

LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "topic", "intent", "emotion",
    "polarity", "stars",
)  # fmt: skip
TEXT_NAMES = (
    "text", "sentence", "review", "content", "body", "document", "article", "comment", "tweet",
    "utterance", "question", "query", "abstract", "description", "headline", "title",
)  # fmt: skip
PAIR_NAMES = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"),
    ("question1", "question2"), ("question", "sentence"), ("question", "answer"),
    ("text_a", "text_b"), ("text1", "text2"),
)  # fmt: skip
LABELLED_COLUMNS = frozenset(
    (*LABEL_NAMES, *TEXT_NAMES, *(name for pair in PAIR_NAMES for name in pair))
)

SAMPLE_ROWS = 1000
"""Rows looked at to tell the label's column from the text's in a file without a header."""
FEW = 0.1
"""A label's column has at most this share of the distinct values that the text's has."""

_WHOLE_FLOAT = re.compile(r"-?\d+\.0")


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or two, and its label where it has one."""

    text: str
    text_pair: str | None
    label: str | None
    source: str


@dataclass(frozen=True)
class Columns:
    """Which columns hold what: names, or positions from 1 where there is no header."""

    text: tuple[str, ...]
    text_pair: str | None
    label: str | None
    separator: str | None = None
    """What stands between several labels of a text; None: each has one. An example's label is then
    a JSON list of them; lists in the file are read whatever the separator."""

    def describe(self) -> str:
        """For the line that says what was chosen."""
        parts = [f"text from {' + '.join(self.text)}"] if self.text else []
        if self.text_pair:
            parts.append(f"second text from {self.text_pair}")
        if self.label:
            parts.append(f"label from {self.label}")
        return ", ".join(parts)


def resolve_columns(
    path: Path,
    *,
    text_column: str | tuple[str, ...] | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    need_label: bool,
    reading: ReadOptions = DEFAULT,
) -> Columns:
    """Choose the columns of a file; the label's only if it is needed or named.

    Raises InputError if a named column isn't there or there are two of the name, UsageError where
    several would do, or one is named for two things.
    """
    text = split_columns(text_column)
    if not is_table(path):
        if need_label:
            raise InputError(
                f"{named(path)} is plain text and has no labels; give a CSV, TSV, JSONL or Parquet "
                "file"
            )
        return Columns(("text",), None, None)
    named_columns = (*text, text_pair_column, label_column)
    reader = RowReader(path, requested=named_columns, known=LABELLED_COLUMNS, reading=reading)
    if not reader.columns:
        raise InputError(f"{path} has no rows; give a file with examples")
    # 1. What is named.
    text = tuple(reader.column("--text-column", name) for name in text)
    pair = text_pair_column and reader.column("--text-pair-column", text_pair_column)
    label = label_column and reader.column("--label-column", label_column)
    _check_apart(text, pair, label)
    # A column without a name is an index that some writers put first.
    names = reader.named
    # 2. The label, by its name, else by what stands in the columns.
    if label is None:
        label = _first(LABEL_NAMES, reader, "--label-column", (*text, pair))
    if label is None and len(names) == 2 and (need_label or not text):
        known = None if text else _first(TEXT_NAMES, reader, "--text-column", ())
        label, guessed = _guess(reader, names)
        if label is not None and label in (known, *text):
            label = None  # few values stand where the text is by its name
        elif label is not None or not reader.has_header:
            text = text or (guessed,)
    if label is None and need_label:
        _ask_label(reader)
    # 3. The text, or both.
    if not text:
        rest = [name for name in names if name not in (label, pair)]
        lower = by_lower(rest)
        obvious = next((p for p in PAIR_NAMES if p[0] in lower and p[1] in lower), None)
        if obvious and pair is None:
            for name in obvious:
                reader.check_single("--text-column", name, any_case=True)
            text, pair = (lower[obvious[0]],), lower[obvious[1]]
        elif (match := _first(TEXT_NAMES, reader, "--text-column", (label, pair))) is not None:
            text = (match,)
        elif len(rest) == 1:
            text = (rest[0],)
        elif reader.has_header:
            raise UsageError(
                f"{path} has the columns {reader.listed()}: choose the text with --text-column"
            )
        else:
            _ask(reader)
    return Columns(text, pair, label if need_label or label_column else None)


def _check_apart(text: Sequence[str], pair: str | None, label: str | None) -> None:
    """Raises UsageError for a column that is named for two things."""
    for option, column, others in (
        ("--text-pair-column", pair, text),
        ("--label-column", label, (*text, pair)),
    ):
        if column and column in others:
            raise UsageError(f"{option} {column} is the column of a text already; name another")


def column_names(path: Path, wanted: Sequence[str], reading: ReadOptions = DEFAULT) -> list[str]:
    """The columns of a table, their names or their positions, as it is read when those wanted are
    asked for; none for plain text."""
    if not is_table(path):
        return []
    return RowReader(path, requested=wanted, known=LABELLED_COLUMNS, reading=reading).columns


def read_examples(
    path: Path, columns: Columns, *, reading: ReadOptions = DEFAULT
) -> Iterator[Example]:
    """An example for every row of a file, or every line of plain text.

    Raises InputError, naming the line, for a row without the label that is asked for. A row without
    text is given with an empty one, so that the caller can count it or answer row by row.
    """
    if not is_table(path):
        for number, (line, _) in enumerate(text_lines(path, reading), 1):
            yield Example(line.strip(), None, None, f"{named(path)}:{number}")
        return
    chosen = (*columns.text, columns.text_pair, columns.label)
    reader = RowReader(path, requested=chosen, known=LABELLED_COLUMNS, reading=reading)
    wanted = Columns(
        tuple(reader.column("--text-column", name) for name in columns.text),
        columns.text_pair and reader.column("--text-pair-column", columns.text_pair),
        columns.label and reader.column("--label-column", columns.label),
        columns.separator,
    )
    keys = [key for key in (*wanted.text, wanted.text_pair, wanted.label) if key]
    for row in reader.rows(keys):
        yield example_of(row, wanted)


def example_of(row: TableRow, columns: Columns) -> Example:
    """A row as an example. Raises InputError for one without the label that is asked for."""
    text = " ".join(filter(None, (_text(row.values.get(c), row.source) for c in columns.text)))
    pair = None
    if columns.text_pair is not None:
        pair = _text(row.values.get(columns.text_pair), row.source)
    label = None
    if columns.label is not None:
        value = row.values.get(columns.label)
        if columns.separator is None:
            label = _label(value, row.source, columns.label)
        else:
            label = _several(value, row.source, columns.label, columns.separator)
    return Example(text, pair, label, row.source)


def _several(value: Any, source: str, column: str, separator: str) -> str:
    """Any number of labels as a JSON list, each once."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = parse_json(value)
        except Malformed as error:
            raise InputError(f"{source}: {column} is no JSON list ({error}); mend it") from None
    if isinstance(value, str):
        value = [part for part in value.split(separator) if part.strip()]
    if value is None or value != value:
        value = []
    parts = value if isinstance(value, list | tuple) else [value]
    if odd := [part for part in parts if isinstance(part, list | dict | tuple | bytes)]:
        raise InputError(
            f"{source}: {type(odd[0]).__name__} stands for a label of {column}; give a list of "
            "labels, each a text or a number"
        )
    names = dict.fromkeys(_label(part, source, column) for part in parts)
    return json.dumps(list(names), ensure_ascii=False)


def labels_of(label: str | None) -> list[str]:
    """The labels of an example that has any number of them."""
    names: list[str] = json.loads(label or "[]")
    return names


def _first(
    candidates: tuple[str, ...], reader: RowReader, option: str, taken: tuple[str | None, ...]
) -> str | None:
    """The column of the first candidate that is there and not taken. Raises InputError where two
    have its name."""
    if not reader.has_header:
        return None
    free = [name.lower() for name, key in zip(reader.names, reader.columns, strict=True)
            if key not in taken]  # fmt: skip
    column = next((name for name in candidates if name in free), None)
    if column is None:
        return None
    keys = [key for name, key in zip(reader.names, reader.columns, strict=True)
            if name.lower() == column and key not in taken]  # fmt: skip
    if len(keys) > 1:
        reader.check_single(option, column, any_case=True)
    return keys[0]


def _guess(reader: RowReader, names: list[str]) -> tuple[str | None, str]:
    """The label's and the text's column among two, by what stands in them; no label if it isn't
    plain."""
    rows = [row.values for row in islice(reader.rows(names), SAMPLE_ROWS)]
    cells = {name: [str(row.get(name, "")) for row in rows] for name in names}
    distinct = {name: len(set(cells[name])) for name in names}
    length = {name: sum(map(len, cells[name])) for name in names}
    few, many = sorted(names, key=lambda name: (distinct[name], length[name]))
    # A handful of rows can't tell by share: then a much shorter column is the label's, if its
    # values come again, which titles do not.
    again = distinct[few] * 3 <= len(rows) * 2
    plain = distinct[few] < distinct[many] and (
        distinct[few] <= max(1, FEW * distinct[many]) or (again and length[few] * 3 < length[many])
    )
    return (few if plain else None), many


def _ask_label(reader: RowReader) -> NoReturn:
    if reader.has_header:
        raise InputError(
            f"{reader.path} has no label column{did_you_mean('label', reader.named)}; it has "
            f"{reader.listed()}: choose with --label-column"
        )
    _ask(reader)


def _ask(reader: RowReader) -> NoReturn:
    columns = reader.columns
    if len(columns) == 1:
        raise UsageError(
            f"{reader.path} has one column ({reader.shown_first_row()}), and a label beside its "
            "text is needed; divide the fields by commas, or by tabs in a .tsv"
        )
    raise UsageError(
        f"{reader.path} has {len(columns)} columns and no header that names them: say which is "
        f"which, for example --label-column 1 --text-column {','.join(columns[1:]) or '1'}; or "
        f"give --header yes if its first row ({reader.shown_first_row()}) names them"
    )


def _text(value: Any, source: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{source}: a text was expected and {value!r} is there; choose another --text-column"
        )
    return value.strip()


def _label(value: Any, source: str, column: str) -> str:
    """A label's name: the same for 1, 1.0 and "1.0", and for true, True and TRUE, which formats
    make of one another."""
    if isinstance(value, list | dict | tuple | bytes):
        raise InputError(
            f"{source}: {column} is {type(value).__name__}, and an example has one label; give "
            "one label a row, as text or a number, or finetune with --multi-label"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = "" if value is None or value != value else str(value).strip()
    if name.lower() in ("true", "false"):  # as Python writes what JSON and R write otherwise
        name = name.capitalize()
    if not name:
        raise InputError(f"{source} has no {column}; fill it in or remove it")
    return name.removesuffix(".0") if _WHOLE_FLOAT.fullmatch(name) else name
