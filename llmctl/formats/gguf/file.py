"""A GGUF file: a head of named values and of tensors' places, then the tensors (version 2 or 3 of
the format, little-endian; docs/gguf.md of ggml).

Read where it lies: only the head is parsed, a tensor's bytes are mapped and turned into numbers
when it is looked up. Every count and length is compared with what the file has left before
anything of such a size is made, as a head may say what it likes. Read and written here, as the
`gguf` package would do it with no less code around it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from llmctl.errors import InputError, read_errors_naming
from llmctl.formats.gguf.blocks import (
    BLOCK_KINDS,
    BY_NUMBER,
    UNREAD_KINDS,
    BlockKind,
    dequantise,
    quantise,
)
from llmctl.workspace.files import errors_naming

MAGIC = b"GGUF"
VERSIONS = (2, 3)
WRITTEN_VERSION = 3
ALIGNMENT, ALIGNMENT_KEY = 32, "general.alignment"
"""Tensors begin at multiples of so many bytes, where the head doesn't say of how many."""
AGAIN = "copy it again from where it was made"
MAX_SIDES = 4

_NUMBERS = ("B", "b", "H", "h", "I", "i", "f", "?")
"""The types 0 to 7 of values, as `struct` has them."""
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
_WIDE = {10: "Q", 11: "q", 12: "d"}
NUMBER_FORMATS = {**dict(enumerate(_NUMBERS)), **_WIDE}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its file."""

    kind: BlockKind
    shape: tuple[int, ...]
    """The sides as PyTorch has them: the file has the sides in the other order."""
    begin: int
    end: int


class _Damaged(Exception):
    """What a head says can't be; the message doesn't name the file."""


class _Cursor:
    """What is read from a head, one value after another."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> memoryview:
        """The next bytes. Raises _Damaged where the file ends before."""
        if size > len(self.data) - self.at:
            raise _Damaged(f"it ends at byte {len(self.data):,}, within its head")
        self.at += size
        return memoryview(self.data[self.at - size : self.at])  # type: ignore[arg-type]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return str(bytes(self.take(self.number("Q"))), "utf-8")

    def value(self, kind: int) -> Any:
        """A value of a type. An array of numbers is one of NumPy, another a list."""
        if kind in NUMBER_FORMATS:
            return self.number(NUMBER_FORMATS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise _Damaged(f"it has a value of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBER_FORMATS:
            dtype = np.dtype(f"<{NUMBER_FORMATS[inner]}" if inner != BOOL else "?")
            return np.frombuffer(self.take(count * dtype.itemsize), dtype=dtype)
        if inner != STRING or count > len(self.data) // 8:
            raise _Damaged(f"it has an array of {count:,} values of type {inner}")
        return [self.text() for _ in range(count)]


class GgufFile(Mapping[str, Tensor]):
    """An opened file: its values, and its tensors by name, each read when it is looked up."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the file is missing, no GGUF, damaged, or of another version."""
        self.path = path
        with read_errors_naming(path):
            with path.open("rb") as stream:
                if stream.read(4) != MAGIC:
                    raise InputError(f"{path} is no GGUF file: it doesn't begin with GGUF")
            self._data = np.memmap(path, dtype=np.uint8, mode="r")
        try:
            self.head, self.places = _read_head(self._data)
        except _Damaged as error:
            raise InputError(f"{path} is damaged or not supported: {error}; {AGAIN}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path} is damaged: a name is not UTF-8; {AGAIN}") from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: place.shape for name, place in self.places.items()}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor as fp32. Raises InputError where its numbers are not finite."""
        place = self.places[name]
        values = dequantise(self._data[place.begin : place.end], place.kind)
        tensor = torch.from_numpy(values).view(place.shape)
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise InputError(
                f"{self.path}: the tensor {name} has numbers that are not finite; the file is "
                "damaged, or the model diverged: take another"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places


def _read_head(data: np.ndarray) -> tuple[dict[str, Any], dict[str, Place]]:
    cursor = _Cursor(data)
    cursor.take(len(MAGIC))
    version = cursor.number("I")
    if version not in VERSIONS:
        if version and not version & 0xFFFF:
            raise _Damaged("it is big-endian, and little-endian files are read")
        raise _Damaged(f"it is of version {version}, and versions 2 and 3 are read")
    tensors, count = cursor.number("Q"), cursor.number("Q")
    values: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        if name in values:
            raise _Damaged(f"it says {name} twice")
        values[name] = cursor.value(cursor.number("I"))
    heads = [_read_place(cursor) for _ in range(tensors)]
    alignment = values.get(ALIGNMENT_KEY, ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"{ALIGNMENT_KEY} is {alignment!r}")
    first = -(-cursor.at // alignment) * alignment
    places: dict[str, Place] = {}
    for name, kind, shape, offset in heads:
        begin = first + offset
        end = begin + prod(shape) // kind.size * kind.layout.itemsize
        if end > len(data):
            raise _Damaged(f"it ends at byte {len(data):,}, and the tensor {name} at {end:,}")
        if name in places:
            raise _Damaged(f"it has the tensor {name} twice")
        places[name] = Place(kind, shape, begin, end)
    in_order = sorted(places, key=lambda name: places[name].begin)
    for name, following in pairwise(in_order):
        if places[following].begin < places[name].end:
            raise _Damaged(f"the tensors {name} and {following} lie one upon the other")
    return values, places


def _read_place(cursor: _Cursor) -> tuple[str, BlockKind, tuple[int, ...], int]:
    name, sides = cursor.text(), cursor.number("I")
    if not 1 <= sides <= MAX_SIDES:
        raise _Damaged(f"the tensor {name} has {sides} sides")
    shape = tuple(cursor.number("Q") for _ in range(sides))[::-1]
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in BY_NUMBER:
        raise _Damaged(
            f"the tensor {name} is of type {UNREAD_KINDS.get(number, number)}, which is not read; "
            f"take the model in one of {', '.join(BLOCK_KINDS)}"
        )
    kind = BY_NUMBER[number]
    if shape[-1] % kind.size or not all(shape):
        raise _Damaged(f"the tensor {name} of type {kind.name} has rows of {shape[-1]} numbers")
    return name, kind, shape, offset


def _packed(value: Any) -> bytes:
    """A value with its type before it, as a head has it."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, np.ndarray):
        kind = {"i": INT32, "f": FLOAT32}[value.dtype.kind]
        plain = value.astype("<i4" if kind == INT32 else "<f4")
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + plain.tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def write_gguf(
    path: Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, BlockKind],
) -> None:
    """Write a file. values: bool, int, float, text, lists of texts, and arrays of int32 or fp32.

    tensors: looked up one after another. kinds: of each. Raises OSError where the disk is full.
    """
    sizes = [_size(tensors[name].shape, kinds[name]) for name in kinds]
    head = struct.pack("<4sIQQ", MAGIC, WRITTEN_VERSION, len(kinds), len(values))
    head += b"".join(_text(name) + _packed(value) for name, value in values.items())
    offset = 0
    for (name, kind), size in zip(kinds.items(), sizes, strict=True):
        shape = tuple(tensors[name].shape)[::-1]
        sides = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += _text(name) + sides + struct.pack("<IQ", kind.number, offset)
        offset += size + -size % ALIGNMENT
    with errors_naming(path), path.open("wb") as stream:
        _aligned(stream, head)
        for name, kind in kinds.items():
            values_here = tensors[name].detach().float().contiguous().numpy()
            _aligned(stream, quantise(values_here, kind).tobytes())


def _aligned(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.write(bytes(-len(data) % ALIGNMENT))


def _size(shape: Sequence[int], kind: BlockKind) -> int:
    return prod(shape) // kind.size * kind.layout.itemsize
