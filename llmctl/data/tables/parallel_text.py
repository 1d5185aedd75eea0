"""Sources and their targets: texts to translate or to summarise, and what should be written.

Two layouts: tables with a column for each, named or found among obvious names, and two plain text
files where line n of one belongs to line n of the other. An empty text is kept, so that lines
stay aligned; whoever reads the pairs leaves it out and says how many there were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NoReturn

from llmctl.data.tables.labelled import Columns, Example, read_examples
from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import by_lower, is_table, named
from llmctl.errors import InputError, UsageError

PARALLEL_NAMES = (
    ("source", "target"), ("src", "tgt"), ("source_text", "target_text"),
    ("document", "summary"), ("article", "highlights"), ("article", "summary"),
    ("article", "abstract"), ("dialogue", "summary"), ("content", "summary"), ("text", "summary"),
    ("question", "answer"), ("text", "headline"), ("article", "headline"), ("text", "title"),
    ("article", "title"), ("content", "title"), ("abstract", "title"), ("instruction", "output"),
    ("prompt", "completion"), ("input", "output"), ("input", "target"), ("text", "target"),
)  # fmt: skip
SOURCE_NAMES = tuple(dict.fromkeys(source for source, _ in PARALLEL_NAMES))
TARGET_NAMES = tuple(dict.fromkeys(target for _, target in PARALLEL_NAMES))
PARALLEL_COLUMNS = frozenset((*SOURCE_NAMES, *TARGET_NAMES))

_LINES = Columns(("text",), None, None)


@dataclass(frozen=True, slots=True)
class SourceTarget:
    """A source and its target, where it has one; either may be empty."""

    source: str
    target: str | None
    where: str
    """Its file and line, for messages."""


@dataclass(frozen=True)
class PairColumns:
    """Which columns hold what: names, or positions from 1 where there is no header."""

    source: str
    target: str | None

    def describe(self) -> str:
        """For the line that says what was chosen."""
        target = "" if self.target is None else f", target from column {self.target}"
        return f"source from column {self.source}{target}"


def resolve_pair_columns(
    path: Path,
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    need_target: bool = True,
    reading: ReadOptions = DEFAULT,
) -> PairColumns | None:
    """Choose the columns of a table, the target's only if it is needed or named; None for text.

    Of two columns without a header the first is the source. Raises InputError if a named column
    isn't there, UsageError where several would do.
    """
    if not is_table(path):
        for option, column in (
            ("--source-column", source_column),
            ("--target-column", target_column),
        ):
            if column is not None:
                raise UsageError(
                    f"{option} {column!r} is for tables, and {path} is plain text; leave it out"
                )
        return None
    both = (source_column, target_column)
    reader = RowReader(path, requested=both, known=PARALLEL_COLUMNS, reading=reading)
    names = reader.columns
    if not names:
        raise InputError(f"{path} has no rows; give a file with pairs")
    source_column = source_column and reader.column("--source-column", source_column)
    target_column = target_column and reader.column("--target-column", target_column)
    if source_column is not None and source_column == target_column:
        raise UsageError(
            f"--source-column and --target-column are both {source_column!r}; name two columns"
        )
    need_target = need_target or target_column is not None
    if need_target and len(names) == 1:
        raise InputError(
            f"{path} has one column, and a pair needs two; add the source's or the target's"
        )
    source, target = _chosen(reader, source_column, target_column, need_target)
    if source is None or (need_target and target is None):
        _ask(reader, source, target, need_target)
    return PairColumns(source, target)


def pair_column_names(
    path: Path, wanted: Sequence[str], reading: ReadOptions = DEFAULT
) -> list[str]:
    """The columns of a table, their names or their positions, as it is read when those wanted are
    asked for; none for plain text."""
    if not is_table(path):
        return []
    return RowReader(path, requested=wanted, known=PARALLEL_COLUMNS, reading=reading).columns


def read_pairs(
    data: Path,
    *,
    target_file: Path | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    need_target: bool = True,
    reading: ReadOptions = DEFAULT,
) -> Iterator[SourceTarget]:
    """A pair for every row of a table, or for every line of plain text.

    Texts are without the space around them. What can be told from the options and the columns is
    raised at once, as UsageError or InputError; while reading, InputError naming the line for a
    row that lacks a text or has something else in its place (null is an empty text), and at the
    end for files of different numbers of lines or without any pair.
    """
    columns = resolve_pair_columns(
        data,
        source_column=source_column,
        target_column=target_column,
        need_target=need_target,
        reading=reading,
    )
    if columns is not None:
        if target_file is not None:
            raise UsageError(
                f"--target {target_file} goes with plain text, and {data} is a table; choose its "
                "column with --target-column"
            )
        return _rows(data, columns, reading)
    if target_file is None:
        if need_target:
            raise InputError(
                f"{data} is plain text and has no targets; give --target FILE with a target a "
                "line, or a table with source and target"
            )
        return _sources(data, reading)
    if is_table(target_file):
        raise InputError(
            f"--target {target_file} is a table, and {data} is plain text; give a text file with "
            "a target a line, or one table with source and target"
        )
    return _aligned(data, target_file, reading)


def _chosen(
    reader: RowReader, source: str | None, target: str | None, need_target: bool
) -> tuple[str | None, str | None]:
    """The columns given, and what is obvious of those that aren't."""
    names = reader.named
    if source is None and target is None:
        if not reader.has_header:
            # A third column may as well stand before the source as behind the target.
            source, target = ("1", "2") if len(names) == 2 else (None, None)
        else:
            source, target = _known_pair(names, None, None)
        if not need_target:
            source, target = source or _first_or_only(SOURCE_NAMES, names), None
        return source, target
    known_source, known_target = _known_pair(names, source, target)
    rest = [name for name in names if name not in (source, target)]
    if source is None:
        source = known_source or _first_or_only(SOURCE_NAMES, rest)
    elif target is None and need_target:
        target = known_target or _first_or_only(TARGET_NAMES, rest)
    return source, target


def _known_pair(
    names: list[str], source: str | None, target: str | None
) -> tuple[str | None, str | None]:
    """The first of PAIR_NAMES of which both are there, with the one that is given if one is."""
    lower = by_lower(names)
    for first, second in PARALLEL_NAMES:
        columns = lower.get(first), lower.get(second)
        if None not in columns and source in (None, columns[0]) and target in (None, columns[1]):
            return columns
    return None, None


def _first_or_only(candidates: tuple[str, ...], names: list[str]) -> str | None:
    lower = by_lower(names)
    column = next((lower[name] for name in candidates if name in lower), None)
    return names[0] if column is None and len(names) == 1 else column


def _ask(reader: RowReader, source: str | None, target: str | None, need_target: bool) -> NoReturn:
    path, names = reader.path, reader.columns
    if not reader.has_header:
        example = "--source-column 1" + (" --target-column 2" if need_target else "")
        raise UsageError(
            f"{path} has {len(names)} columns and no header that names them: say which is which, "
            f"for example {example}; or give --header yes if its first row "
            f"({reader.shown_first_row()}) names them"
        )
    missing = []
    if source is None:
        missing.append("the source with --source-column")
    if target is None and need_target:
        missing.append("the target with --target-column")
    raise UsageError(f"{path} has the columns {', '.join(names)}: choose {' and '.join(missing)}")


def _rows(path: Path, columns: PairColumns, reading: ReadOptions) -> Iterator[SourceTarget]:
    named = [name for name in (columns.source, columns.target) if name is not None]
    row = None
    for row in RowReader(path, requested=named, known=PARALLEL_COLUMNS, reading=reading).rows(
        named
    ):
        source, target = _text(row, columns.source, "--source-column"), None
        if columns.target is not None:
            target = _text(row, columns.target, "--target-column")
        yield SourceTarget(source, target, row.source)
    if row is None:
        raise InputError(f"{path} has no rows; give a file with pairs")


def _text(row: TableRow, column: str, option: str) -> str:
    if column not in row.values:
        raise InputError(f"{row.source} has no {column}; fill it in or remove the row")
    value = row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{row.source}: {column} is {type(value).__name__}, and a text was expected; write it "
            f"as one, or choose another {option}"
        )
    return value.strip()


def _lines(path: Path, reading: ReadOptions) -> Iterator[Example]:
    return read_examples(path, _LINES, reading=reading)


def _sources(path: Path, reading: ReadOptions) -> Iterator[SourceTarget]:
    line = None
    for line in _lines(path, reading):
        yield SourceTarget(line.text, None, line.source)
    if line is None:
        raise InputError(f"{named(path)} has no lines; give a file with a text a line")


def _aligned(data: Path, target_file: Path, reading: ReadOptions) -> Iterator[SourceTarget]:
    lines = zip_longest(_lines(data, reading), _lines(target_file, reading))
    number = 0
    for number, (source, target) in enumerate(lines, 1):
        if source is None or target is None:
            shorter, longer = number - 1, number + sum(1 for _ in lines)
            of_data, of_target = (shorter, longer) if source is None else (longer, shorter)
            raise InputError(
                f"{data} has {of_data} lines and {target_file} has {of_target}; line n of one "
                "belongs to line n of the other, so add what is missing or remove what is left over"
            )
        yield SourceTarget(source.text, target.text, source.source)
    if not number:
        raise InputError(f"{data} and {target_file} have no lines; give files with a text a line")
