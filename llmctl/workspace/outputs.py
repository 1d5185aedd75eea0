"""Outputs by a path that a user gives: into a file, or to whatever else has a name.

A regular file is replaced in one step, beside where links lead to, and keeps its permissions. What
isn't one (a device, a pipe, standard output by ``-`` or by its name) is written to.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmctl.errors import BusyError, InputError
from llmctl.workspace.files import errors_naming, fsync_path, take_mode, write_atomic

MOST_LINKS = 40
"""Linux's own limit, behind which it calls links a circle."""
MAX_PARTIAL_NAME = 100
"""Characters of an output's name that the name of what is being written beside it has."""


@dataclass(frozen=True)
class Output:
    """Where an output goes."""

    path: Path
    """The path as the user wrote it, for messages."""
    file: Path | None
    """The regular file that is, or will be, at the end of the links; None for anything else."""

    def write(self, text: str) -> None:
        """Write it all."""
        if self.file is not None:
            write_atomic(self.file, text)
            return
        with self.stream() as stream:
            stream.write(text.encode())

    @contextlib.contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """What isn't a regular file, to write to."""
        if str(self.path) == "-":
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        with errors_naming(self.path):
            # A file behind /dev/stdout may have been opened to append.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            with os.fdopen(descriptor, "wb") as stream:
                yield stream

    @contextlib.contextmanager
    def partial(self, made_from: str) -> Iterator[BinaryIO]:
        """A file beside a regular one, to append to; it takes that one's place when the block ends
        well, and is found again by the same ``made_from`` where it didn't.

        Raises BusyError if another process has it.
        """
        assert self.file is not None
        name = f".{self.file.name[:MAX_PARTIAL_NAME]}.{made_from}.partial"
        path = self.file.with_name(name)
        with errors_naming(self.path), path.open("a+b") as stream:
            if not _alone_with(stream, path):
                raise BusyError(
                    f"{self.path} is being written by another process, from the same model and "
                    "the same sources; wait until it is done, or write to another file"
                )
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            take_mode(path, self.file)
            path.replace(self.file)
        fsync_path(self.file.parent)


def output_at(path: Path) -> Output:
    """Where an output by this name goes. Raises InputError where nothing can be written, so that
    it is known before anything is computed."""
    if str(path) == "-":
        return Output(path, None)
    try:
        end = _end_of_links(path)
        if path.exists():
            if path.is_dir():
                raise InputError(f"{path} is a folder; name a file in it")
            regular = stat.S_ISREG(path.stat().st_mode) and not _is_stream(end)
            if not os.access(path, os.W_OK):
                raise InputError(f"{path} can't be written to; check its permissions")
            return Output(path, end if regular else None)
        if not end.parent.is_dir():
            raise InputError(f"{path}: there is no folder {end.parent}; make it, or name another")
        if len(os.fsencode(end.name)) > os.pathconf(end.parent, "PC_NAME_MAX"):
            raise InputError(f"{str(path)[:80]}… is too long for a file's name; choose another")
    except OSError as error:
        raise InputError(
            f"{str(path)[:200]} can't be written: {error.strerror}; choose another file"
        ) from None
    return Output(path, end)


def _end_of_links(path: Path) -> Path:
    """What a path leads to, by its last name; one in /proc stands for what is open."""
    for _ in range(MOST_LINKS):
        if not path.is_symlink() or _is_stream(path):
            return path
        path = path.parent / os.readlink(path)
    raise InputError(f"{path}: its links lead in a circle; name another file")


def _is_stream(path: Path) -> bool:
    """Whether a path names what a process has open, as /dev/stdout does."""
    return os.path.realpath(path.parent).startswith("/proc/") or path.parent == Path("/dev/fd")


def _alone_with(stream: BinaryIO, path: Path) -> bool:
    """Whether no other process is at a file; held until it is closed."""
    try:
        import fcntl
    except ImportError:  # Windows lets nobody else rename it
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # It may have become the output between being opened and being locked.
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
