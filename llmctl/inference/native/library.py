"""The compiled kernels: made by this machine's C compiler, kept in the user's cache.

What is kept is known by a hash of the sources, the flags, and all that the compiler says of itself
and of the processor that it compiles for: another processor, as of a home folder that several
machines share, has another library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from llmctl.errors import UsageError

KERNEL_SOURCES = ("llama.c", "products.h")
"""The one that is compiled, and what it includes."""
COMPILER_FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
KERNELS_OPTION = "--kernels native"


class NoKernelsError(UsageError):
    """The kernels can't be had here."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{KERNELS_OPTION}: {reason}; {remedy}, or leave the option out")
        self.said = f"{reason}; {remedy}"
        """Why, and what to do, where they were not asked for."""


def are_made_for_this() -> bool:
    """Whether the processor has what the kernels are written for. Any other computes the same, how
    fast was not measured."""
    return bool(torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported())


@cache
def library() -> ctypes.CDLL:
    """The kernels, ready to be called; made where they aren't yet, which takes some seconds.

    Raises NoKernelsError where there is no compiler, or none that can.
    """
    compiler = _compiler()
    folder = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for part in (_macros(compiler), *((folder / name).read_bytes() for name in KERNEL_SOURCES)):
        digest.update(len(part).to_bytes(8, "little") + part)
    kept = _cache_folder() / f"kernels-{digest.hexdigest()}.so"
    if kept.exists():
        try:
            return _loaded(kept)
        except OSError:  # cut off
            pass
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _compile(compiler, folder / KERNEL_SOURCES[0], kept)
        return _loaded(kept)
    except OSError as error:
        raise NoKernelsError(
            f"the kernels can't be kept at {kept.parent} ({error})",
            "set XDG_CACHE_HOME to a folder that can be written",
        ) from error


def _loaded(path: Path) -> ctypes.CDLL:
    """Raises OSError for what is no library, AttributeError for another."""
    found = ctypes.CDLL(str(path))
    pointer, size, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.llmctl_multiply.argtypes = [pointer, pointer, pointer, size, integer]
    found.llmctl_read.argtypes = [pointer, pointer, pointer, size, integer]
    return found


def _compiler() -> list[str]:
    asked = os.environ.get("CC")
    try:
        names = [shlex.split(asked)] if asked else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise NoKernelsError(f"CC is {asked!r}, no command ({error})", "mend it") from None
    for words in names:
        if words and shutil.which(words[0]):
            return words
    raise NoKernelsError(
        f"there is no C compiler here ({asked or 'cc, gcc or clang'})",
        "install one (apt install gcc), or name it by CC",
    )


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmctl"
    except RuntimeError:
        raise NoKernelsError(
            "there is no home folder to keep the kernels in", "set XDG_CACHE_HOME to a folder"
        ) from None


def _macros(compiler: list[str]) -> bytes:
    """What a compiler defines by itself: its version and all that the processor can."""
    return _run([*compiler, *COMPILER_FLAGS, "-dM", "-E", "-x", "c", os.devnull])


def _compile(compiler: list[str], source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        _run([*compiler, *COMPILER_FLAGS, "-shared", "-fPIC", str(source), "-o", str(made), "-lm"])
        if not made.exists():
            raise NoKernelsError(f"{compiler[0]} made no file", "name another compiler by CC")
        try:
            _loaded(made)
        except AttributeError:
            raise NoKernelsError(
                f"what {compiler[0]} made are not the kernels", "name another compiler by CC"
            ) from None
        made.replace(target)  # whole or not at all, whoever else makes it too


def _run(command: list[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise NoKernelsError(
            f"{command[0]} can't be run ({error.strerror})", "name another compiler by CC"
        ) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["without a word"]
        why = next((line for line in said if "error" in line), said[-1])
        raise NoKernelsError(
            f"{command[0]} can't compile the kernels ({why})", "name another compiler by CC"
        )
    return done.stdout
