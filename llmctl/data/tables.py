"""Labelled texts: the rows of a table as examples for classification.

Columns are named, or numbered from 1 where a CSV has no header. Where the choice is obvious it is
made; where it isn't, the error says which options to give.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llmctl.data.files import Row, RowReader, format_of, split_columns, text_lines
from llmctl.errors import InputError, UsageError, did_you_mean

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
KNOWN = frozenset((*LABEL_NAMES, *TEXT_NAMES, *(name for pair in PAIR_NAMES for name in pair)))

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
    encoding_errors: str = "strict",
) -> Columns:
    """Choose the columns of a file; the label's only if it is needed or named.

    Raises InputError if a named column isn't there, UsageError where several would do.
    """
    text = split_columns(text_column)
    if _is_lines(path):
        if need_label:
            raise InputError(
                f"{path} is plain text and has no labels; give a CSV, TSV, JSONL or Parquet file"
            )
        return Columns(("text",), None, None)
    reader = _reader(path, (*text, text_pair_column, label_column), encoding_errors)
    names = reader.columns
    if not names:
        raise InputError(f"{path} has no rows; give a file with examples")
    for option, wanted in (
        ("--label-column", label_column),
        *(("--text-column", name) for name in text),
        ("--text-pair-column", text_pair_column),
    ):
        if wanted is not None and wanted not in names:
            _refuse_column(path, option, wanted, reader)
    label = label_column
    if label is None:
        label = _first(LABEL_NAMES, [n for n in names if n not in (*text, text_pair_column)])
    if not reader.has_header and label is None and len(names) == 2 and (need_label or not text):
        label, guessed = _guess(reader)
        text = text or (guessed,)
    if label is None and need_label:
        if reader.has_header:
            raise InputError(
                f"{path} has no label column{did_you_mean('label', names)}; it has "
                f"{', '.join(names)}: choose with --label-column"
            )
        _ask(path, names)
    pair = text_pair_column
    if not text:
        rest = [name for name in names if name not in (label, pair)]
        lower = {name.lower(): name for name in rest}
        known = next((p for p in PAIR_NAMES if p[0] in lower and p[1] in lower), None)
        if known and pair is None:
            text, pair = (lower[known[0]],), lower[known[1]]
        elif (found := _first(TEXT_NAMES, rest)) is not None:
            text = (found,)
        elif len(rest) == 1:
            text = (rest[0],)
        elif reader.has_header:
            raise UsageError(
                f"{path} has the columns {', '.join(names)}: choose the text with --text-column"
            )
        else:
            _ask(path, names)
    return Columns(text, pair, label if need_label else label_column)


def column_names(path: Path, wanted: Sequence[str], encoding_errors: str = "strict") -> list[str]:
    """The columns of a table, their names or their positions, as it is read when those wanted are
    asked for; none for plain text."""
    return [] if _is_lines(path) else _reader(path, tuple(wanted), encoding_errors).columns


def read_examples(
    path: Path, columns: Columns, *, encoding_errors: str = "strict"
) -> Iterator[Example]:
    """An example for every row of a file, or every line of plain text.

    Raises InputError, naming the line, for a row without the label that is asked for. A row without
    text is given with an empty one, so that the caller can count it or answer row by row.
    """
    if _is_lines(path):
        for source, line in _lines(path, encoding_errors):
            yield Example(line.strip(), None, None, source)
        return
    wanted = (*columns.text, columns.text_pair, columns.label)
    named = [name for name in wanted if name]
    for row in _reader(path, wanted, encoding_errors).rows(named):
        yield example_of(row, columns)


def example_of(row: Row, columns: Columns) -> Example:
    """A row as an example. Raises InputError for one without the label that is asked for."""
    text = " ".join(filter(None, (_text(row.values.get(c), row.source) for c in columns.text)))
    pair = None
    if columns.text_pair is not None:
        pair = _text(row.values.get(columns.text_pair), row.source)
    label = None
    if columns.label is not None:
        label = _label(row.values.get(columns.label), row.source, columns.label)
    return Example(text, pair, label, row.source)


def _is_lines(path: Path) -> bool:
    return str(path) == "-" or format_of(path) == ".txt"


def _lines(path: Path, errors: str) -> Iterator[tuple[str, str]]:
    if str(path) == "-":
        for number, raw in enumerate(sys.stdin.buffer, 1):
            try:
                yield f"standard input:{number}", raw.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"standard input:{number}: byte 0x{raw[error.start]:02x} is not UTF-8; "
                    "convert it, or go on with --encoding-errors replace"
                ) from None
    else:
        for number, (line, _) in enumerate(text_lines(path, errors), 1):
            yield f"{path}:{number}", line


def _reader(path: Path, wanted: tuple[str | None, ...], errors: str) -> RowReader:
    requested = tuple(name for name in wanted if name)
    return RowReader(path, requested=requested, known=KNOWN, errors=errors)


def _first(candidates: tuple[str, ...], names: list[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in candidates if name in lower), None)


def _guess(reader: RowReader) -> tuple[str | None, str]:
    """Of two nameless columns, the label's and the text's; no label if it isn't plain."""
    rows = list(islice(reader, SAMPLE_ROWS))
    distinct = {name: len({row.values[name] for row in rows}) for name in reader.columns}
    length = {name: sum(len(row.values[name]) for row in rows) for name in reader.columns}
    few, many = sorted(reader.columns, key=lambda name: (distinct[name], length[name]))
    # A handful of rows can't tell by share: then a much shorter column is the label's.
    plain = distinct[few] < distinct[many] and (
        distinct[few] <= max(1, FEW * distinct[many]) or length[few] * 3 < length[many]
    )
    return (few if plain else None), many


def _refuse_column(path: Path, option: str, wanted: str, reader: RowReader) -> None:
    known = ", ".join(reader.columns)
    what = "columns" if reader.has_header else "columns, numbered as it has no header,"
    raise InputError(
        f"{option} {wanted!r}: {path} has no such column"
        f"{did_you_mean(wanted, reader.columns)}; it has the {what} {known}"
    )


def _ask(path: Path, names: list[str]) -> None:
    raise UsageError(
        f"{path} has {len(names)} columns and no header that names them: say which is which, for "
        f"example --label-column 1 --text-column {','.join(names[1:]) or '1'}"
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
    """A label's name: the same for 1, 1.0 and "1.0", which formats make of one another."""
    if isinstance(value, list | dict | tuple | bytes):
        raise InputError(
            f"{source}: {column} is {type(value).__name__}, and an example has one label; give "
            "one label a row, as text or a number"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = "" if value is None or value != value else str(value).strip()
    if not name:
        raise InputError(f"{source} has no {column}; fill it in or remove it")
    return name.removesuffix(".0") if _WHOLE_FLOAT.fullmatch(name) else name
