"""Opening what people have: plain or compressed text checked for UTF-8, and rows of tables.

Everything streams: a file is never held whole, except a .json that is one list.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmctl.errors import InputError, UsageError
from llmctl.parsing import Malformed, parse_json

BLOCK = 1 << 20
"""Bytes read at a time."""
BATCH_ROWS = 1024
"""Rows of Parquet and Arrow decoded at a time: long documents make larger batches costly."""

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
COLUMNAR = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"}
COMPRESSED_SUFFIXES = (".gz", ".zst")

_SURROGATE = re.compile("[\ud800-\udfff]")

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def format_of(path: Path) -> str:
    """The suffix that tells a file's format, compression aside; ``.txt`` if it has none known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return last if last in ROW_SUFFIXES else ".txt"


def is_readable(path: Path) -> bool:
    """Whether a file of a folder is one that we know by its name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in (*TEXT_SUFFIXES, *ROW_SUFFIXES)


def kind_of_suffix(path: Path) -> str:
    """How a file's name ends, compression included, for messages: ``.log``, ``.html.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES else ""
    return (suffixes[-1] if suffixes else "") + packed or "no suffix"


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The decompressed stream and, to tell how far it has been read, the file below it."""
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None
    with raw:
        suffix = path.suffix.lower()
        stream: IO[bytes]
        if suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
        elif suffix == ".zst":
            # Unlike zstandard's reader it tells a file cut short from a whole one.
            stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        else:
            stream = raw
        try:
            yield stream, raw
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(
                f"{path} is cut short or damaged ({error}); fetch or compress it again"
            ) from None


def text_blocks(path: Path, errors: str = "strict") -> Iterator[tuple[str, int]]:
    """Blocks of text with newlines as ``\\n``, and the bytes of the file read so far.

    A byte-order mark is dropped. Raises InputError naming the offset (in the decompressed text)
    of the first byte that is 0 or not UTF-8, unless ``errors`` is ``replace``.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, first = 0, True
    with open_bytes(path) as (stream, raw):
        while True:
            block = stream.read(BLOCK)
            if errors == "strict" and b"\0" in block:
                raise InputError(
                    f"{path}: byte 0x00 at offset {offset + block.index(0)}: it is binary, not "
                    "text; name the file by its format (.parquet, .arrow, .gz, .zst), or go on "
                    "with --encoding-errors replace"
                )
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                bad = offset - pending + error.start
                raise InputError(
                    f"{path}: byte 0x{error.object[error.start]:02x} at offset {bad} is not UTF-8; "
                    "convert the file, or go on with --encoding-errors replace"
                ) from None
            offset += len(block)
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            text = newlines.decode(text, final=not block).replace("\0", "\ufffd")
            if text:
                yield text, raw.tell()
            if not block:
                return


def text_lines(path: Path, errors: str = "strict") -> Iterator[tuple[str, int]]:
    """Lines with their ``\\n``, and the bytes of the file read so far."""
    rest: list[str] = []
    position = 0
    for block, position in text_blocks(path, errors):
        lines = block.split("\n")
        rest.append(lines[0])
        if len(lines) > 1:
            yield "".join(rest) + "\n", position
            for line in lines[1:-1]:
                yield line + "\n", position
            rest = [lines[-1]]
    last = "".join(rest)
    if last:
        yield last, position


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table, its place for messages, and the bytes of the file read so far."""

    values: dict[str, Any]
    source: str
    position: int


class RowReader:
    """The rows of a table file.

    requested: column names or positions that the user gave. known: names by which a first row
    of a CSV is recognised as its header where none were given.
    """

    def __init__(
        self,
        path: Path,
        *,
        requested: Sequence[str] = (),
        known: frozenset[str] = frozenset(),
        errors: str = "strict",
    ) -> None:
        self.path, self._errors = path, errors
        self._format = format_of(path)
        self.has_header = True
        self.columns: list[str] = []
        """Names of the columns; ``1``, ``2``, … where the file has no header."""
        self.first_row: list[str] = []
        """Cells of a CSV's or TSV's first row, header or not; for messages."""
        if self._format in (".csv", ".tsv"):
            self._look_at_header(requested, known)
        else:
            for row in self.rows(()):
                self.columns = self.columns or list(row.values)
                if self.columns:
                    break

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def rows(self, columns: Sequence[str] | None = None, after: int = 0) -> Iterator[Row]:
        """The rows, with at least these columns; None for all.

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

    def _look_at_header(self, requested: Sequence[str], known: frozenset[str]) -> None:
        first = next(self._records(), None)
        if first is None:
            return
        cells = [cell.strip() for cell in first[0]]
        names = [name for name in requested if not name.isdigit()]
        if names:
            self.has_header = any(name in cells for name in names) or not requested_positions(
                requested
            )
        else:
            self.has_header = bool(known.intersection(cell.lower() for cell in cells))
        self.first_row = cells
        self.columns = cells if self.has_header else [str(n + 1) for n in range(len(cells))]

    def _records(self) -> Iterator[tuple[list[str], int, int]]:
        position = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line, position in text_lines(self.path, self._errors):  # noqa: B007
                yield line

        # A TSV has no quoting: quotes in it are text. In a CSV a quote that is never closed would
        # swallow the rest of the file if the reader weren't strict.
        dialect: dict[str, Any] = (
            {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
            if self._format == ".tsv"
            else {"strict": True}
        )
        reader = csv.reader(lines(), **dialect)
        line = 1
        try:
            for record in reader:
                if record:
                    yield record, line, position
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{self.path}:{line}: the row that begins here can't be read ({error}); "
                "check its quotes"
            ) from None

    def _delimited(self) -> Iterator[Row]:
        records = self._records()
        if self.has_header:
            next(records, None)
        for record, line, position in records:
            if len(record) != len(self.columns):
                raise InputError(
                    f"{self.path}:{line} has {len(record)} fields where the first row has "
                    f"{len(self.columns)}; check its quotes and separators"
                )
            values = dict(zip(self.columns, record, strict=True))
            yield Row(values, f"{self.path}:{line}", position)

    def _json_lines(self, after: int = 0) -> Iterator[Row]:
        for number, (line, position) in enumerate(text_lines(self.path, self._errors), 1):
            if line.strip():
                source = f"{self.path}:{number}"
                passed = position <= after
                yield Row({}, source, position) if passed else self._object(line, source, position)

    def _json(self) -> Iterator[Row]:
        lines = text_lines(self.path, self._errors)
        first = next((line for line, _ in lines if line.strip()), "")
        if not first.lstrip().startswith("["):
            yield from self._json_lines()
            return
        text = "".join(block for block, _ in text_blocks(self.path, self._errors))
        try:
            values = parse_json(text)
        except Malformed as error:
            if error.line is None:
                raise InputError(f"{self.path} can't be read as JSON: {error}") from None
            raise InputError(f"{self.path}:{error.line} is not JSON: {error}") from None
        total = self.path.stat().st_size
        for number, value in enumerate(values, 1):
            source = f"{self.path} item {number}"
            if not isinstance(value, dict):
                raise InputError(f"{source} is not an object; give a list of {{…}}")
            self._check_surrogates(value, source)
            yield Row(value, source, total * number // len(values))

    def _object(self, line: str, source: str, position: int) -> Row:
        try:
            value = parse_json(line)
        except Malformed as error:
            if error.line is None:
                raise InputError(f"{source} can't be read as JSON: {error}") from None
            raise InputError(f"{source} is not JSON: {error}; one object a line") from None
        if not isinstance(value, dict):
            raise InputError(f'{source} is not a JSON object; write {{"text": …}}')
        if "\\u" in line:
            self._check_surrogates(value, source)
        return Row(value, source, position)

    def _check_surrogates(self, value: dict[str, Any], source: str) -> None:
        """JSON can escape half of a character, which no encoding can write."""
        for name, text in value.items():
            if isinstance(text, str) and _SURROGATE.search(text):
                if self._errors == "strict":
                    raise InputError(
                        f"{source}: {name} has half of a surrogate pair, which is not Unicode; "
                        "mend it, or go on with --encoding-errors replace"
                    )
                value[name] = _SURROGATE.sub("\ufffd", text)

    def _columnar(self, columns: Sequence[str] | None) -> Iterator[Row]:
        batches = self._parquet if self._format == ".parquet" else self._arrow
        number, begin = 0, 0
        try:
            for batch, end in batches(columns):
                # A damaged or hostile file can crash the reader of its buffers.
                try:
                    batch.validate(full=True)
                except pa.ArrowInvalid:
                    batch = self._decoded(batch, number)
                    batch.validate(full=True)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    for row, values in enumerate(batch.slice(start, BATCH_ROWS).to_pylist(), start):
                        number += 1
                        position = begin + (end - begin) * (row + 1) // batch.num_rows
                        yield Row(values, f"{self.path} row {number}", position)
                begin = end
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file") from None
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self.path} can't be read as {COLUMNAR[self._format]}: {reason}"
            ) from None

    def _decoded(self, batch: pa.RecordBatch, rows_before: int) -> pa.RecordBatch:
        """A batch with its texts taken for bytes and decoded here, value by value."""
        decoded = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            values = _as_bytes(column)
            if values is None:
                decoded.append(column)
                continue
            values.validate(full=True)
            texts: list[str | None] = []
            for number, value in enumerate(values.to_pylist(), rows_before + 1):
                try:
                    texts.append(None if value is None else value.decode("utf-8", self._errors))
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{self.path} row {number}: {name}: byte 0x{value[error.start]:02x} at "
                        f"offset {error.start} of the value is not UTF-8; convert it, or go on "
                        "with --encoding-errors replace"
                    ) from None
            decoded.append(pa.array(texts, pa.large_string()))
        return pa.RecordBatch.from_arrays(decoded, names=batch.schema.names)

    def _parquet(self, columns: Sequence[str] | None) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Batches, and the bytes of the file read after each."""
        total, done = self.path.stat().st_size, 0
        with pq.ParquetFile(self.path) as file:
            self.columns = file.schema_arrow.names
            chosen = _chosen(self.columns, columns)
            names = [self.columns[n] for n in chosen]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                done += batch.num_rows
                yield batch, total * done // max(file.metadata.num_rows, done)

    def _arrow(self, columns: Sequence[str] | None) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Batches of an Arrow file or stream, and the bytes of the file read after each."""
        total = self.path.stat().st_size
        with pa.memory_map(str(self.path)) as source:
            try:
                file = pa.ipc.open_file(source)
            except pa.ArrowInvalid:
                source.seek(0)
                stream = pa.ipc.open_stream(source)
                self.columns = stream.schema.names
                for batch in stream:
                    yield batch.select(_chosen(self.columns, columns)), source.tell()
                return
            self.columns = file.schema.names
            for number in range(file.num_record_batches):
                batch = file.get_batch(number).select(_chosen(self.columns, columns))
                yield batch, total * (number + 1) // file.num_record_batches


def _as_bytes(column: pa.Array) -> pa.Array | None:
    """A column of texts, possibly each a number in a list of texts, as one of bytes."""
    if pa.types.is_dictionary(column.type):
        dictionary = _as_bytes(column.dictionary)
        if dictionary is None:
            return None
        coded = pa.DictionaryArray.from_arrays(column.indices, dictionary)
        coded.validate(full=True)
        return coded.dictionary_decode()
    types = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return column.view(types[column.type]) if column.type in types else None


def _chosen(names: list[str], columns: Sequence[str] | None) -> list[int]:
    """Positions of the columns; by name would fail where two have the same."""
    return [n for n, name in enumerate(names) if columns is None or name in columns]


def requested_positions(requested: Sequence[str]) -> list[str]:
    """Those of the requested columns that are positions."""
    return [name for name in requested if name.isdigit()]


def split_columns(option: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """``title,description`` as a tuple of names; what is one already stays as it is, so that a
    name may have a comma. Raises UsageError for an empty name."""
    if option is None or isinstance(option, tuple):
        return option or ()
    names = tuple(name.strip() for name in option.split(","))
    if not all(names):
        raise UsageError(f"column {option!r} has an empty name; write for example title,text")
    return names
