"""The rows of tables: CSV, TSV, JSONL, JSON, Parquet and Arrow, one after another.

A file is never held whole, except a .json that is one document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from llmctl.data.tables.columnar import ColumnarFile
from llmctl.data.tables.delimited import BrokenRow, dialect_of
from llmctl.data.tables.header import judge
from llmctl.data.text.decoding import DEFAULT, ReadOptions, text_blocks, text_lines
from llmctl.data.text.files import COLUMNAR, format_of, keys_of
from llmctl.errors import InputError, did_you_mean
from llmctl.parsing import Malformed, not_json, parse_json

BEGINNING_ROWS = 1000
"""Rows or lines that are looked at before the others are read."""
BEGINNING_SIZE = 1 << 20
"""Fewer rows are looked at if these have about so many characters or bytes."""
ROW_FIELDS = ("data", "rows", "examples", "instances", "items")
"""Fields in which a JSON object holds the rows of a table."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table, its place for messages, and the bytes of the file read so far."""

    values: dict[str, Any]
    source: str
    position: int


class RowReader:
    """The rows of a table file.

    requested: columns that the user named, or numbered from 1; None is none. known: names that
    columns of such a table often have.
    """

    def __init__(
        self,
        path: Path,
        *,
        requested: Sequence[str | None] = (),
        known: frozenset[str] = frozenset(),
        reading: ReadOptions = DEFAULT,
    ) -> None:
        self.path, self._reading = path, reading
        self._format = format_of(path)
        self.has_header = True
        self.names: list[str] = []
        """Names of the columns; ``1``, ``2``, … where the file has no header."""
        self.first_row: list[str] = []
        """Cells of a CSV's or TSV's first row, header or not; for messages."""
        if self._format in (".csv", ".tsv"):
            self._begin_delimited([name for name in requested if name], known)
        elif self._format in COLUMNAR:
            self.names = ColumnarFile(path, reading.errors).names()
        else:
            self.names = self._names_of_json()
        self.columns = keys_of(self.names)
        """What rows call them: names, and where several have one their positions too."""

    def __iter__(self) -> Iterator[TableRow]:
        return self.rows()

    def rows(self, columns: Sequence[str] | None = None, after: int = 0) -> Iterator[TableRow]:
        """The rows, with at least these of ``columns``; None for all.

        A row within the file's first ``after`` bytes is not looked at and may come empty.
        Of Parquet and Arrow no other column is decoded: it costs time, and may be of a type that
        has no equal in Python.
        """
        if self._format in COLUMNAR:
            return self._columnar(columns)
        readers = {".csv": self._delimited, ".tsv": self._delimited, ".json": self._json}
        if self._format in readers:
            return readers[self._format]()
        return self._json_lines(after)

    def column(self, option: str, wanted: str) -> str:
        """Which of ``columns`` an option means: by name, or by position where they have an order.

        Raises InputError if none is, or more than one of that name.
        """
        if wanted in self.columns:
            return wanted
        self.check_single(option, wanted)
        ordered = self._format in (*COLUMNAR, ".csv", ".tsv")
        if ordered and wanted.isdecimal() and len(wanted) < 9:
            number = int(wanted)
            if 0 < number <= len(self.columns):
                return self.columns[number - 1]
        what = "columns" if self.has_header else "columns, numbered as it has no header,"
        raise InputError(
            f"{option} {wanted!r}: {self.path} has no such column"
            f"{did_you_mean(wanted, self.columns)}; it has the {what} {self.listed()}"
        )

    def check_single(self, option: str, name: str, *, any_case: bool = False) -> None:
        """Raises InputError if several columns have a name: which is meant can't be told.

        any_case: whether capitals make no other name.
        """
        alike = [
            n
            for n, other in enumerate(self.names, 1)
            if other == name or (any_case and other.lower() == name.lower())
        ]
        if len(alike) > 1:
            places = " and ".join(map(str, alike))
            first = self.columns[alike[0] - 1]
            by = "position" if self.names[alike[0] - 1] != first else "name"
            raise InputError(
                f"{self.path} has several columns called {name!r} (columns {places}): choose one "
                f"by its {by}, {option} {alike[0] if by == 'position' else first}"
            )

    @property
    def named(self) -> list[str]:
        """Those of ``columns`` that have a name."""
        return [key for name, key in zip(self.names, self.columns, strict=True) if name]

    def listed(self) -> str:
        """The columns, for messages."""
        return ", ".join(name or "(no name)" for name in self.columns)

    def _begin_delimited(self, requested: Sequence[str], known: frozenset[str]) -> None:
        """Find the dialect and the header by the first rows."""
        self._carriage_returns = False
        lines, cut = self._first_lines()
        if len(lines) == 1 and "\r" in lines[0] and not lines[0].endswith("\n"):
            self._carriage_returns = True  # as programs once wrote on a Macintosh
            lines, cut = self._first_lines()
        self._dialect = dialect_of(
            self._format, lines, cut, lambda what: self._reading.say(f"{self.path}: {what}")
        )
        records = self._dialect.beginning(lines)
        if not records:  # the first is broken, or longer than a beginning
            records = [record for record, _, _ in islice(self._records(), 1)]
        if not records:
            return
        self.first_row = [cell.strip() for cell in records[0]]
        self.has_header = self._has_header(records, requested, known)
        positions = [str(n) for n in range(1, len(self.first_row) + 1)]
        self.names = self.first_row if self.has_header else positions

    def _first_lines(self) -> tuple[list[str], bool]:
        """Lines of the beginning, and whether more follow."""
        lines: list[str] = []
        size = 0
        for line, _ in self._lines():
            if len(lines) == BEGINNING_ROWS or size > BEGINNING_SIZE:
                return lines, True
            lines.append(line)
            size += len(line)
        return lines, False

    def _lines(self) -> Iterator[tuple[str, int]]:
        return text_lines(self.path, self._reading, carriage_returns=self._carriage_returns)

    def _has_header(
        self, records: list[list[str]], requested: Sequence[str], known: frozenset[str]
    ) -> bool:
        if self._reading.header != "auto":
            return self._reading.header == "yes"
        names = [name for name in requested if not name.isdecimal()]
        if names:
            cells = {*self.first_row, *keys_of(self.first_row)}
            return not cells.isdisjoint(names) or len(names) == len(requested)
        verdict = judge(records, known)
        if not verdict.certain:
            taken, other = "a header", "no if it is an example"
            if not verdict.is_header:
                taken, other = "an example", "yes if it names the columns"
            self._reading.say(
                f"{self.path}: the first row ({self.shown_first_row()}) was taken for {taken}; "
                f"give --header {other}"
            )
        return verdict.is_header

    def shown_first_row(self) -> str:
        """The first row's cells, for messages."""
        cells = [shorten(cell, 24, placeholder="…") for cell in self.first_row[:6]]
        return ", ".join(cells) + (", …" if len(self.first_row) > 6 else "")

    def _records(self) -> Iterator[tuple[list[str], int, int]]:
        """Fields of each row, the line that it begins at, and the bytes read so far."""
        position = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line, position in self._lines():  # noqa: B007
                yield line

        try:
            for record, line in self._dialect.records(lines()):
                yield record, line, position
        except BrokenRow as error:
            raise InputError(
                f"{self.path}:{error.line}: the row that begins here can't be read ({error}); "
                "check its quotes"
            ) from None

    def _delimited(self) -> Iterator[TableRow]:
        records = self._records()
        if self.has_header:
            next(records, None)
        again: list[int] = []
        for record, line, position in records:
            if len(record) != len(self.columns):
                raise InputError(
                    f"{self.path}:{line} has {len(record)} fields where the first row has "
                    f"{len(self.columns)}; check its quotes and separators"
                )
            # Files that were put together have the header of each.
            if self._repeats_header(record):
                again.append(line)
                continue
            values = dict(zip(self.columns, record, strict=True))
            yield TableRow(values, f"{self.path}:{line}", position)
        if again:
            rows = "1 row that repeats" if len(again) == 1 else f"{len(again)} rows that repeat"
            self._reading.say(
                f"left out {rows} the header of {self.path} (the first: line {again[0]})"
            )

    def _repeats_header(self, record: list[str]) -> bool:
        if not self.has_header or len(record) == 1 or record[0].strip() != self.first_row[0]:
            return False
        return [cell.strip() for cell in record] == self.first_row

    def _names_of_json(self) -> list[str]:
        """The fields of the first objects: not each has all."""
        names: dict[str, None] = {}
        try:
            for row in islice(self.rows(), BEGINNING_ROWS):
                names.update(dict.fromkeys(row.values))
                if names and row.position > BEGINNING_SIZE:
                    break
        except InputError:
            if not names:  # else whoever reads the rows comes to it
                raise
        return list(names)

    def _json_lines(self, after: int = 0) -> Iterator[TableRow]:
        for number, (line, position) in enumerate(text_lines(self.path, self._reading), 1):
            if line.strip():
                source = f"{self.path}:{number}"
                passed = position <= after
                yield (
                    TableRow({}, source, position)
                    if passed
                    else self._object(line, source, position)
                )

    def _json(self) -> Iterator[TableRow]:
        """One document, or objects one a line."""
        lines = (line for line, _ in text_lines(self.path, self._reading) if line.strip())
        first, second = next(lines, ""), next(lines, "")
        if not first or (second and first.lstrip().startswith("{") and _parses_alone(first)):
            yield from self._json_lines()
            return
        text = "".join(block for block, _ in text_blocks(self.path, self._reading))
        try:
            document = parse_json(text)
        except Malformed as error:
            raise not_json(self.path, error) from None
        values = self._listed(document)
        total = self.path.stat().st_size
        for number, value in enumerate(values, 1):
            source = f"{self.path} item {number}"
            if not isinstance(value, dict):
                raise InputError(f"{source} is not an object; give a list of {{…}}")
            self._check_surrogates(value, source)
            yield TableRow(value, source, total * number // len(values))

    def _listed(self, document: Any) -> list[Any]:
        """The rows of a JSON document: a list, an object that holds one, or a single object."""
        if isinstance(document, list):
            return document
        if not isinstance(document, dict):
            raise InputError(f"{self.path} is no table; give a list of {{…}}, or one a line")
        lists = [
            name
            for name, value in document.items()
            if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
        ]
        for name in lists:
            if name.lower() in ROW_FIELDS and len(lists) == 1:
                self._reading.say(f"{self.path}: rows from its field {name}")
                rows: list[Any] = document[name]
                return rows
        if len(lists) > 1:
            raise InputError(
                f"{self.path} holds several lists of objects ({', '.join(lists)}); give each "
                "a file of its own"
            )
        return [document]

    def _object(self, line: str, source: str, position: int) -> TableRow:
        try:
            value = parse_json(line)
        except Malformed as error:
            if error.line is None:
                raise not_json(source, error) from None
            raise InputError(f"{source} is not JSON: {error}; one object a line") from None
        if not isinstance(value, dict):
            raise InputError(f'{source} is not a JSON object; write {{"text": …}}')
        if "\\u" in line:
            self._check_surrogates(value, source)
        return TableRow(value, source, position)

    def _check_surrogates(self, value: dict[str, Any], source: str) -> None:
        """JSON can escape half of a character, which no encoding can write."""
        for name, entry in value.items():
            value[name] = self._whole(entry, name, source)

    def _whole(self, value: Any, name: str, source: str) -> Any:
        """A value, or the values in it, without halves of characters."""
        if isinstance(value, list):
            return [self._whole(entry, f"{name}[{n}]", source) for n, entry in enumerate(value)]
        if isinstance(value, dict):
            return {
                key: self._whole(entry, f"{name}.{key}", source) for key, entry in value.items()
            }
        if not isinstance(value, str) or not _SURROGATE.search(value):
            return value
        if self._reading.errors == "strict":
            raise InputError(
                f"{source}: {name} has half of a surrogate pair, which is not Unicode; mend it, or "
                "go on with --encoding-errors replace"
            )
        return _SURROGATE.sub("\ufffd", value)

    def _columnar(self, columns: Sequence[str] | None) -> Iterator[TableRow]:
        file = ColumnarFile(self.path, self._reading.errors)
        for number, (values, position) in enumerate(file.rows(columns), 1):
            yield TableRow(values, f"{self.path} row {number}", position)


def _parses_alone(line: str) -> bool:
    """Whether a line is a JSON object by itself."""
    try:
        return isinstance(parse_json(line), dict)
    except Malformed:
        return False
