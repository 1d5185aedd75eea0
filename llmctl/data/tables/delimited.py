"""The rows of CSV and TSV: what divides their fields, and whether quotes are theirs or the text's.

A CSV is divided by commas and quotes what needs it (RFC 4180); some that are called so are divided
by tabs, semicolons or bars. A TSV has no quoting: quotes in it are text, unless they stand where a
writer of quoted fields would have put them.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmctl.data.text.decoding import MAX_LINE

DIVIDERS = {"\t": "tabs", ";": "semicolons", "|": "bars"}
"""What divides fields where commas do not."""
ALIKE = 0.9
"""Share of a file's first rows that have as many fields as one another."""

csv.field_size_limit(MAX_LINE)

Record = tuple[list[str], int]
"""Fields, and the line that they begin at."""


class BrokenRow(ValueError):
    """A row that can't be told apart into fields, and the line that it begins at."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True)
class Dialect:
    """How the fields of a row are told apart."""

    delimiter: str
    quoted: bool

    def records(self, lines: Iterable[str]) -> Iterator[Record]:
        """The rows of lines; empty lines are none. Raises BrokenRow for quotes that don't close,
        which would swallow the rest of a file."""
        if not self.quoted:
            for number, line in enumerate(lines, 1):
                if text := line.removesuffix("\n"):
                    yield [_cell(field) for field in text.split(self.delimiter)], number
            return
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        begin = 1
        try:
            for record in reader:
                if record:
                    yield [_cell(field) for field in record], begin
                begin = reader.line_num + 1
        except csv.Error as error:
            raise BrokenRow(str(error), begin) from None

    def beginning(self, lines: Sequence[str]) -> list[list[str]]:
        """The rows that some lines of a file's beginning have whole."""
        rows = []
        try:
            for record, _ in self.records(lines):
                rows.append(record)
        except BrokenRow:
            pass  # the last of them, or one that reading the file will tell of
        return rows


def _cell(field: str) -> str:
    """A field; a lone carriage return within it is a line's end."""
    return field.replace("\r", "\n") if "\r" in field else field


def dialect_of(suffix: str, lines: Sequence[str], cut: bool, say: Callable[[str], None]) -> Dialect:
    """The dialect of a file by its suffix and its first lines.

    cut: whether more lines follow. say: is told of a surprise.
    """
    if suffix == ".tsv":
        return Dialect("\t", _is_quoted(lines, "\t", cut))
    comma = Dialect(",", quoted=True)
    if _divides(comma, lines):
        return comma
    tabs = Dialect("\t", _is_quoted(lines, "\t", cut))
    others = [
        tabs,
        *(Dialect(delimiter, quoted=True) for delimiter in DIVIDERS if delimiter != "\t"),
    ]
    dialect = next((dialect for dialect in others if _divides(dialect, lines)), None)
    # No text has tabs in nearly every row: rows with too many are then told by their lines.
    if dialect is None and _divides(tabs, lines, or_more=True):
        dialect = tabs
    if dialect is None:
        return comma
    say(f"its fields are divided by {DIVIDERS[dialect.delimiter]}, not by commas")
    return dialect


def _divides(dialect: Dialect, lines: Sequence[str], *, or_more: bool = False) -> bool:
    """Whether several rows, nearly all of them and the first, have as many fields, more than one:
    texts can have a comma each, which the names of the columns have not.

    or_more: whether the others may have more of them.
    """
    sizes = [len(record) for record in dialect.beginning(lines)]
    ((size, rows),) = Counter(sizes).most_common(1) or [(0, 0)]
    alike = sum(other > size for other in sizes) if or_more else 0
    return size > 1 and size == sizes[0] and rows > 1 and rows + alike >= ALIKE * len(sizes)


def _is_quoted(lines: Sequence[str], delimiter: str, cut: bool) -> bool:
    """Whether quotes in the beginning of a file are its writer's: each field that has one is quoted
    as a whole, with those inside doubled, and either needs it (for a delimiter, a line's end or a
    quote inside) or stands in a column that is quoted in every row. Where each line is a row of
    its own, no field has a line's end."""
    text = "".join(lines)
    if '"' not in text:
        return False
    alike = len({line.count(delimiter) for line in lines if line != "\n"}) == 1
    field = re.compile(
        f'(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^"{delimiter}\n]*))(?P<end>{delimiter}|\n|$)'
    )
    needless: set[int] = set()
    plain: set[int] = set()
    sizes: set[int] = set()
    place = column = row = 0
    while place < len(text):
        match = field.match(text, place)
        if match is None:
            # One that the beginning cuts off, or one that no such writer writes.
            if row and cut and re.fullmatch('"(?:[^"]|"")*', text[place:]):
                break
            return False
        inside = match["quoted"]
        if inside is None:
            if row:
                plain.add(column)
        elif alike and "\n" in inside:
            return False
        elif not re.search(f'["{delimiter}\n\r]', inside):
            needless.add(column)
        place, column = match.end(), column + 1
        if match["end"] != delimiter:
            sizes.add(column)
            column, row = 0, row + 1
    return len(sizes) == 1 and not needless & plain
