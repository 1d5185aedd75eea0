"""Tensors in files: safetensors, never pickle.

What reads or writes them knows PyTorch; what merely looks into a workspace does not load it.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import InputError
from llmctl.workspace.files import errors_naming

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors. Raises OSError, as any writer does, when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # The library gives a file to nobody else; it is to be what the umask says.
    with errors_naming(path):
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
