"""Tensors in files: safetensors, never pickle.

What reads or writes them knows PyTorch; what merely looks into a workspace does not load it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import InputError
from llmctl.workspace.files import errors_naming, replaced_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TENSOR_ALIGNMENT = 64
"""Bytes at whose multiples PyTorch puts tensors. Products of what lies elsewhere are summed up in
another order, and differ in their last bits."""
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of floats as safetensors calls them, and as PyTorch does."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors in one step. Raises OSError, as any writer does, when the disk is full."""
    # Prepared beside it, a file that is there stays whole for whoever has it mapped.
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with replaced_file(path) as temporary:
        _save(temporary, contiguous, metadata or {"format": "pt"})


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors of a processor's memory.

    As the library's writer does, the widest first and by their names, but for the blanks behind the
    head: with them the numbers begin where they can be mapped (see ``TENSOR_ALIGNMENT``).
    """
    from safetensors.torch import _TYPES

    names = {dtype: name for name, dtype in _TYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        dtype = names[tensors[name].dtype]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % TENSOR_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_as_bytes(tensors[name]))


def _as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    import torch

    # A single number is contiguous whatever its stride, and then can't be seen as bytes.
    numbers = tensor.as_strided((tensor.numel(),), (1,))
    return numbers.view(torch.uint8).numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors. Raises InputError if the file is missing or malformed."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of safetensors, where it lies: what nobody holds any more takes no memory.

    Raises InputError as ``read_tensors``.
    """
    with _opened(path) as file:
        return file.get_tensor(name)


def tensor_heads(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type, as safetensors calls it, and shape of each tensor of a file.

    Raises InputError as ``read_tensors``.
    """
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (p.get_dtype(), tuple(p.get_shape())) for name, p in parts.items()}


class TensorReader:
    """A safetensors file that is opened once for many of its tensors, each read where it is wanted:
    beside them there is nothing of the file in memory. To be closed."""

    def __init__(self, path: Path) -> None:
        """Raises InputError if the file is missing or malformed."""
        with _opened(path):  # the library looks whether the head is sound
            pass
        self._path = path
        with errors_naming(path):
            self._file = path.open("rb", buffering=0)
            length = int.from_bytes(self._file.read(8), "little")
            self._start = 8 + length
            head = self._file.read(length)
        try:
            self._head: dict[str, Any] = json.loads(head)
        except ValueError:  # another file has taken its place since
            self._file.close()
            raise _changed(path) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def into(self, name: str, place: Tensor) -> Tensor:
        """Read a tensor into one of its shape; returns the numbers as the file has them.

        Raises InputError where the file has no such tensor any more, or ends before it does.
        """
        import torch

        told = self._head.get(name, {})
        dtype = getattr(torch, FLOATS.get(told.get("dtype"), ""), None)
        if dtype is None or told["shape"] != list(place.shape):
            raise _changed(self._path)
        place = place.detach()
        in_place = place.dtype == dtype and place.is_contiguous() and place.device.type == "cpu"
        numbers = place if in_place else torch.empty(place.shape, dtype=dtype, device="cpu")
        rest = _as_bytes(numbers)
        with errors_naming(self._path):
            self._file.seek(self._start + told["data_offsets"][0])
            while rest:
                if not (read := self._file.readinto(rest)):
                    raise _changed(self._path)
                rest = rest[read:]
        if not in_place:
            place.copy_(numbers)
        return numbers


class MappedTensors:
    """A safetensors file in memory as the system has it: its pages take none beside the system's
    cache of files, and processes share them. What is written to a page is this object's own and
    does not reach the file."""

    def __init__(self, path: Path, *, anywhere: bool = False) -> None:
        """anywhere: whether a tensor may begin where PyTorch would put none.

        Raises InputError if the file is missing or malformed.
        """
        import torch

        self._anywhere = anywhere
        with _opened(path):  # the library looks whether the head is sound
            pass
        self._path = path
        with errors_naming(path):
            size = path.stat().st_size
        # Mapped privately: written pages are copied. It keeps no file open, as Python's mmap would.
        storage: Any = torch.UntypedStorage.from_file(str(path), False, size)
        pages = torch.empty(0, dtype=torch.uint8)
        self._pages = pages.set_(storage, 0, (size,), (1,)).numpy()
        self._start = 8 + int.from_bytes(self._pages[:8].tobytes(), "little")
        self._head: dict[str, Any] = json.loads(self._pages[8 : self._start].tobytes())

    def together(self, names: Sequence[str], dtype: torch.dtype) -> Tensor | None:
        """The numbers of tensors of a type that lie one behind another, as a vector in the file's
        pages; None where they don't lie so, or begin where they may not."""
        import torch

        start = end = self._offsets(names[0])[0]
        for name in names:
            first, last = self._offsets(name)
            told = FLOATS.get(self._head[name]["dtype"])
            if told is None or getattr(torch, told) != dtype or first != end:
                return None
            end = last
        step = dtype.itemsize if self._anywhere else TENSOR_ALIGNMENT
        if start == end or (self._start + start) % step:
            return None
        count, offset = (end - start) // dtype.itemsize, self._start + start
        return torch.frombuffer(self._pages, dtype=dtype, count=count, offset=offset)

    def _offsets(self, name: str) -> tuple[int, int]:
        """Where a tensor begins and ends, in bytes behind the head."""
        if name not in self._head:
            raise _changed(self._path)
        first, last = self._head[name]["data_offsets"]
        return int(first), int(last)


class MappedFiles:
    """The files of safetensors that a network's weights are mapped from."""

    def __init__(self, *, anywhere: bool) -> None:
        """anywhere: see ``MappedTensors``."""
        self._anywhere, self._files = anywhere, dict[Path, MappedTensors]()

    def __getitem__(self, path: Path) -> MappedTensors:
        """A file, mapped when it is first asked for. Raises InputError as ``MappedTensors``."""
        if path not in self._files:
            self._files[path] = MappedTensors(path, anywhere=self._anywhere)
        return self._files[path]


def aligned(tensor: Tensor) -> Tensor:
    """A tensor, or a copy of it if it begins where PyTorch would have put none."""
    return tensor.clone() if tensor.data_ptr() % TENSOR_ALIGNMENT else tensor


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read; run the command again")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path} is a folder or a device; give a file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path} is missing; copy it again from where it was made") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as safetensors: {error}") from None
