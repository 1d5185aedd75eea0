"""Tensors in files: safetensors, never pickle.

What reads or writes them knows PyTorch; what merely looks into a workspace does not load it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import InputError
from llmctl.workspace.files import errors_naming

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors. Raises OSError, as any writer does, when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # The library gives a file to nobody else; it is to be what the umask says. One that is there
    # stays whole for whoever has it mapped.
    with errors_naming(path):
        path.unlink(missing_ok=True)
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata=metadata or {"format": "pt"})
    except SafetensorError as error:
        # The library wraps the operating system's error in text: "… (os error 28)".
        number = re.search(r"os error (\d+)", str(error))
        if number:
            raise OSError(int(number[1]), str(error), str(path)) from None
        raise
    path.chmod(mode)


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


def tensor_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file begins and ends, in bytes from the file's start.

    Raises InputError as ``read_tensors``.
    """
    with _opened(path):  # the library looks whether the head is sound, and the file as long
        pass
    with errors_naming(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
    return {
        name: (8 + length + start, 8 + length + end)
        for name, (start, end) in (
            (name, place["data_offsets"]) for name, place in head.items() if name != "__metadata__"
        )
    }


def map_numbers(path: Path, start: int, end: int, dtype: torch.dtype) -> Tensor:
    """The numbers between two places of a file as a vector that lies in the file's own pages.

    They take no memory beside the system's cache of files, and processes share them; what is
    written to them is the process's own and does not reach the file. Raises InputError where the
    file has become shorter.
    """
    import torch

    begin = start - start % mmap.ALLOCATIONGRANULARITY
    try:
        with errors_naming(path), path.open("rb") as file:
            # Private: written pages are copied.
            pages = mmap.mmap(file.fileno(), end - begin, access=mmap.ACCESS_COPY, offset=begin)
    except ValueError as error:
        raise InputError(
            f"{path} changed while it was read ({error}); copy it again from where it was made"
        ) from None
    return torch.frombuffer(
        pages, dtype=dtype, count=(end - start) // dtype.itemsize, offset=start - begin
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path} is missing; copy it again from where it was made") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as safetensors: {error}") from None
