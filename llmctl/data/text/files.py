"""Files by their names: what format one is in, its bytes decompressed, and columns as options name
them."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from llmctl.errors import InputError, UsageError

STDIN = Path("-")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
COLUMNAR = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"}
COMPRESSED_SUFFIXES = (".gz", ".zst")


def named(path: Path) -> str:
    """A file's name for messages: ``-`` is standard input."""
    return "standard input" if path == STDIN else str(path)


def _endings(path: Path) -> tuple[str, str]:
    """The suffixes of a file's format and of its compression, each empty if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES else ""
    return (suffixes[-1] if suffixes else ""), packed


def format_of(path: Path) -> str:
    """The suffix that tells a file's format, compression aside; ``.txt`` if it has none known."""
    ending, _ = _endings(path)
    return ending if ending in ROW_SUFFIXES else ".txt"


def is_table(path: Path) -> bool:
    """Whether a file has rows by its name; else it is read as plain text, as standard input is."""
    return format_of(path) in ROW_SUFFIXES


def is_readable(path: Path) -> bool:
    """Whether a file of a folder is one that we know by its name."""
    return _endings(path)[0] in (*TEXT_SUFFIXES, *ROW_SUFFIXES)


def kind_of_suffix(path: Path) -> str:
    """How a file's name ends, compression included, for messages: ``.log``, ``.html.gz``."""
    return "".join(_endings(path)) or "no suffix"


class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most so many; none at the end."""


class _Piped:
    """Standard input, which gives what there is: whoever writes line by line is answered so."""

    def __init__(self) -> None:
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file")
        self._buffer: Any = sys.stdin.buffer  # a BufferedReader, which its type does not say
        self.position = 0

    def read(self, size: int, /) -> bytes:
        block: bytes = self._buffer.read1(size)
        self.position += len(block)
        return block


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[Readable, Callable[[], int]]]:
    """The decompressed stream of a file, or standard input for ``-``, and what tells how many bytes
    of the file have been read."""
    if path == STDIN:
        piped = _Piped()
        yield piped, lambda: piped.position
        return
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None
    with raw:
        suffix = path.suffix.lower()
        stream: Readable
        if suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        elif suffix == ".zst":
            # Unlike zstandard's reader it tells a file cut short from a whole one.
            stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        else:
            stream = raw
        try:
            yield stream, raw.tell
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(
                f"{path} is cut short or damaged ({error}); fetch or compress it again"
            ) from None


def split_columns(option: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """``title,description`` as a tuple of names; what is one already stays as it is, so that a
    name may have a comma. Raises UsageError for an empty name."""
    if option is None or isinstance(option, tuple):
        return option or ()
    names = tuple(name.strip() for name in option.split(","))
    if not all(names):
        raise UsageError(f"column {option!r} has an empty name; write for example title,text")
    return names


def by_lower(names: Sequence[str]) -> dict[str, str]:
    """Names by themselves in lower case; the first of equals."""
    return {name.lower(): name for name in reversed(names)}


def keys_of(names: Sequence[str]) -> list[str]:
    """What columns are called by: their names, or where several have one, ``name (column n)``.

    >>> keys_of(["text", "label", "text"])
    ['text (column 1)', 'label', 'text (column 3)']
    """
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} (column {n})" for n, name in enumerate(names, 1)]
