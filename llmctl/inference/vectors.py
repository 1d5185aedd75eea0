"""Files of vectors: written in batches, searched a block at a time.

An ``.arrow`` file (Arrow IPC) has a text and its vector in each row, and says in its metadata which
model made it. An ``.npy`` file has the vectors alone; what made them stands beside it, in a file of
its name and ``.json``. Search is exact: every vector is compared, none is held longer than that
takes.

N rows, Q queries, D width.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

from llmctl.errors import InputError, UsageError
from llmctl.inference.embedding import normalized
from llmctl.parsing import Malformed, parse_json, read_json_object
from llmctl.workspace.files import errors_naming, fsync_path, take_mode, to_json, write_json

KEY = b"llmctl.vectors"
VECTORS_FORMAT = 1
BLOCK_ROWS = 16384
"""Rows of an .npy file that are compared at a time: 25 MB at a width of 384."""
VECTOR_SUFFIXES = (".arrow", ".npy")

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MadeFrom:
    """What a file of vectors was made from."""

    model: str
    """The run, or the folder."""
    digest: str
    """The digest of all that decides what the model answers."""
    width: int
    data: str
    data_digest: str
    """The digest of the texts; empty where it can't be told, as of standard input."""
    columns: str | None = None
    """The columns that the texts were read from."""


def check_suffix(path: Path) -> None:
    """Raises UsageError for a name that doesn't say the format."""
    if path.suffix.lower() not in VECTOR_SUFFIXES:
        raise UsageError(f"--out {path}: name it .arrow, vectors with their texts, or .npy")


class _ArrowWriter:
    def __init__(self, stream: BinaryIO, made: MadeFrom) -> None:
        self._schema = pa.schema(
            [
                pa.field("text", pa.large_string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), made.width), nullable=False),
            ],
            metadata={KEY: to_json({"format": VECTORS_FORMAT, **asdict(made)}).encode()},
        )
        self._writer = pa.ipc.new_file(stream, self._schema)

    def add(self, texts: Sequence[str], vectors_ND: Vectors) -> None:
        flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1))
        width = vectors_ND.shape[1]
        columns = [
            pa.array(texts, pa.large_string()),
            pa.FixedSizeListArray.from_arrays(flat, width).cast(self._schema.field("vector").type),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _NpyWriter:
    def __init__(self, stream: BinaryIO, made: MadeFrom) -> None:
        self._stream, self._width, self.rows = stream, made.width, 0
        self._header()

    def _header(self) -> None:
        # NumPy leaves room in it for the number of rows to grow.
        described = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self._width)}
        npy.write_array_header_1_0(self._stream, described)

    def add(self, texts: Sequence[str], vectors_ND: Vectors) -> None:
        self._stream.write(np.ascontiguousarray(vectors_ND, dtype="<f4").tobytes())
        self.rows += len(vectors_ND)

    def close(self) -> None:
        self._stream.seek(0)
        self._header()


@contextmanager
def writing_vectors(path: Path, made: MadeFrom) -> Iterator[_ArrowWriter | _NpyWriter]:
    """What takes texts and vectors; the file appears when the block ends well, and is whole."""
    check_suffix(path)
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    beside = _beside(path)
    with errors_naming(path, partial):
        try:
            with partial.open("xb") as stream:
                is_arrow = path.suffix.lower() == ".arrow"
                writer = (_ArrowWriter if is_arrow else _NpyWriter)(stream, made)
                yield writer
                writer.close()
            fsync_path(partial)
            take_mode(partial, path)
            # Vectors and the description of others are never side by side.
            beside.unlink(missing_ok=True)
            partial.replace(path)
            if isinstance(writer, _NpyWriter):
                write_json(beside, {"format": VECTORS_FORMAT, "rows": writer.rows, **asdict(made)})
            fsync_path(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors that was opened: nothing is read but what describes it."""

    path: Path
    made: MadeFrom
    rows: int

    def blocks(self) -> Iterator[tuple[int, Vectors]]:
        """The vectors, some consecutive rows at a time, with the number of the first.

        Raises InputError where the file is damaged.
        """
        if self.path.suffix.lower() == ".npy":
            array = npy.open_memmap(self.path, mode="r")
            for begin in range(0, self.rows, BLOCK_ROWS):
                yield begin, np.asarray(array[begin : begin + BLOCK_ROWS])
            return
        begin = 0
        for batch in _batches(self.path):
            vectors = batch.column("vector").flatten().to_numpy(zero_copy_only=True)
            yield begin, vectors.reshape(len(batch), self.made.width)
            begin += len(batch)

    def texts(self, rows: Sequence[int]) -> list[str] | None:
        """The texts of some rows; None where the file has none."""
        if self.path.suffix.lower() == ".npy":
            return None
        wanted, begin = dict.fromkeys(rows, ""), 0
        for batch in _batches(self.path):
            for row in wanted:
                if begin <= row < begin + len(batch):
                    wanted[row] = batch.column("text")[row - begin].as_py()
            begin += len(batch)
        return [wanted[row] for row in rows]


def open_vectors(path: Path) -> VectorFile:
    """A file that ``writing_vectors`` wrote. Raises InputError for any other."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with `llmctl embed --out {path}`")
    if path.suffix.lower() == ".npy":
        beside = _beside(path)
        if not beside.is_file():
            raise InputError(
                f"{path} has no {beside.name} beside it, which says what model made it; make it "
                "again with `llmctl embed`"
            )
        described = read_json_object(beside, "make it again with `llmctl embed`")
        try:
            array = npy.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None
        made = _made_from(path, described)
        if array.shape != (described.get("rows"), made.width) or array.dtype != np.float32:
            raise _damaged(path, f"it holds {array.shape} of {array.dtype}")
        return VectorFile(path, made, len(array))
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            schema = reader.schema
            rows = sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))
        described = parse_json((schema.metadata or {})[KEY])
    except (pa.ArrowException, OSError, KeyError, Malformed, ValueError) as error:
        raise InputError(
            f"{path} is no file of vectors that llmctl wrote ({type(error).__name__}); make it "
            "with `llmctl embed`"
        ) from None
    made = _made_from(path, described)
    if schema.names != ["text", "vector"] or schema.types != [
        pa.large_string(),
        pa.list_(pa.float32(), made.width),
    ]:
        raise _damaged(path, f"its columns are {schema.names}")
    return VectorFile(path, made, rows)


@dataclass(frozen=True)
class Hit:
    """A row that is near a query."""

    row: int
    score: float


def nearest(file: VectorFile, queries_QD: Vectors, top: int) -> list[list[Hit]]:
    """For each query the rows with the highest cosines, the highest first; of equals the first."""
    queries_QD = normalized(queries_QD)
    best_QK = np.full((len(queries_QD), 0), -np.inf, dtype=np.float32)
    rows_QK = np.zeros((len(queries_QD), 0), dtype=np.int64)
    for begin, vectors_ND in file.blocks():
        cosines_QN = queries_QD @ normalized(vectors_ND).T
        if not np.isfinite(cosines_QN).all():
            raise _damaged(file.path, "it holds numbers that are not finite")
        rows_N = np.arange(begin, begin + len(vectors_ND))
        best_QK = np.concatenate([best_QK, cosines_QN], axis=1)
        rows_QK = np.concatenate([rows_QK, np.broadcast_to(rows_N, cosines_QN.shape)], axis=1)
        order = np.argsort(-best_QK, axis=1, kind="stable")[:, :top]
        best_QK = np.take_along_axis(best_QK, order, axis=1)
        rows_QK = np.take_along_axis(rows_QK, order, axis=1)
    return [
        [Hit(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]
        for rows, scores in zip(rows_QK, best_QK, strict=True)
    ]


def _beside(path: Path) -> Path:
    """Where an .npy file's description stands."""
    return path.with_name(f"{path.name}.json")


def _batches(path: Path) -> Iterator[Any]:
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                # Offsets that lie outside would be followed into other memory.
                batch.validate(full=True)
                yield batch
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _made_from(path: Path, described: Any) -> MadeFrom:
    names = {entry.name for entry in fields(MadeFrom)}
    if not isinstance(described, dict) or described.get("format") != VECTORS_FORMAT:
        raise _damaged(path, "its description is of another format")
    given = {name: value for name, value in described.items() if name in names}
    texts = [given.get(name) for name in ("model", "digest", "data", "data_digest")]
    if not all(isinstance(text, str) for text in texts) or type(given.get("width")) is not int:
        raise _damaged(path, "its description lacks what made it")
    return MadeFrom(**given)


def _damaged(path: Path, why: object) -> InputError:
    return InputError(f"{path} is damaged ({why}); make it again with `llmctl embed`")
