"""Rows of Parquet and Arrow files, decoded a few megabytes at a time.

A damaged or hostile file can crash the readers of its buffers, so each batch is validated in full
before a value is taken from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmctl.data.text.files import COLUMNAR, format_of, keys_of
from llmctl.errors import InputError

BATCH_ROWS = 1024
"""Rows decoded at a time."""
BATCH_BYTES = 1 << 24
"""About so many bytes are decoded at a time, if that is fewer rows: each value is there twice while
a batch is taken apart."""
BUFFER = 1 << 20
"""Bytes of a column that Parquet's reader holds."""
SHORT_FLOATS = {pa.float16(): np.float16, pa.float32(): np.float32}


class ColumnarFile:
    """A Parquet or Arrow file, its columns called by their keys (see ``keys_of``)."""

    def __init__(self, path: Path, errors: str) -> None:
        self.path, self._errors = path, errors
        self._format = format_of(path)

    def names(self) -> list[str]:
        """The names of all columns. Raises InputError for a file that can't be read."""
        with _reported(self.path, self._format):
            if self._format == ".parquet":
                with pq.ParquetFile(self.path) as file:
                    return list(file.schema_arrow.names)
            with pa.memory_map(str(self.path)) as source:
                return list(_opened(source).schema.names)

    def rows(self, columns: Sequence[str] | None) -> Iterator[tuple[dict[str, Any], int]]:
        """The values of each row, of at least some columns, None for all, and the bytes of the file
        read so far. Raises InputError for a file that can't be read."""
        batches = self._parquet if self._format == ".parquet" else self._arrow
        begin = done = 0
        with _reported(self.path, self._format):
            for batch, keys, end in batches(columns):
                try:
                    batch.validate(full=True)
                except pa.ArrowInvalid:
                    batch = self._decoded(batch, done)
                    batch.validate(full=True)
                step = _rows_at_once(batch.nbytes, batch.num_rows)
                for start in range(0, batch.num_rows, step):
                    part = [_values(column) for column in batch.slice(start, step).columns]
                    for row in range(start, min(start + step, batch.num_rows)):
                        values = [column[row - start] for column in part]
                        position = begin + (end - begin) * (row + 1) // batch.num_rows
                        yield dict(zip(keys, values, strict=True)), position
                begin, done = end, done + batch.num_rows

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

    def _parquet(
        self, columns: Sequence[str] | None
    ) -> Iterator[tuple[pa.RecordBatch, list[str], int]]:
        """Batches, their keys, and the bytes of the file read after each."""
        total, done = self.path.stat().st_size, 0
        with pq.ParquetFile(self.path, buffer_size=BUFFER) as file:
            names = file.schema_arrow.names
            # By name, so all columns of one name come, in their order.
            wanted = list(dict.fromkeys(names[n] for n in _chosen(names, columns)))
            keys: list[str] | None = None
            rows = max(file.metadata.num_rows, 1)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                size = _rows_at_once(group.total_byte_size, group.num_rows)
                for batch in file.iter_batches(size, [number], wanted):
                    keys = keys or _in_order(batch.schema.names, names)
                    done += batch.num_rows
                    yield batch, keys, total * done // max(rows, done)

    def _arrow(
        self, columns: Sequence[str] | None
    ) -> Iterator[tuple[pa.RecordBatch, list[str], int]]:
        """Batches of an Arrow file or stream, their keys, and the bytes read after each."""
        total = self.path.stat().st_size
        with pa.memory_map(str(self.path)) as source:
            file = _opened(source)
            chosen = _chosen(file.schema.names, columns)
            keys = [keys_of(file.schema.names)[n] for n in chosen]
            if isinstance(file, pa.ipc.RecordBatchStreamReader):
                for batch in file:
                    yield batch.select(chosen), keys, source.tell()
                return
            for number in range(file.num_record_batches):
                batch = file.get_batch(number).select(chosen)
                yield batch, keys, total * (number + 1) // file.num_record_batches


@contextmanager
def _reported(path: Path, format: str) -> Iterator[None]:
    """Turns what the libraries say of a file into an error that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} can't be read as {COLUMNAR[format]}: {reason}") from None


def _opened(source: Any) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    """An Arrow file, or stream."""
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def _rows_at_once(nbytes: int, rows: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(nbytes, 1)))


def _values(column: pa.Array) -> list[Any]:
    """A column's values. A short float is the decimal number that it is written as, as in a text
    file: 0.1, not the 0.10000000149 that is nearest to it."""
    short = SHORT_FLOATS.get(column.type)
    values: list[Any] = column.to_pylist()
    if short is None:
        return values
    return [None if value is None else float(str(short(value))) for value in values]


def _in_order(got: Sequence[str], names: Sequence[str]) -> list[str]:
    """The keys of columns that came in another order than a file has them in."""
    left = list(zip(names, keys_of(names), strict=True))
    keys = []
    for name in got:
        place = next(n for n, (other, _) in enumerate(left) if other == name)
        keys.append(left.pop(place)[1])
    return keys


def _chosen(names: Sequence[str], columns: Sequence[str] | None) -> list[int]:
    """Positions of the columns with some keys."""
    return [n for n, key in enumerate(keys_of(names)) if columns is None or key in columns]


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
