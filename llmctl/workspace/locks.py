"""One writer for each artefact: an advisory lock that dies with its process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from llmctl.errors import BusyError

GRACE_SECONDS = 1.0
"""How long a writer waits: a reader that asks whether the lock is held holds it for an instant."""

WAITING_SECONDS = 0.25
"""Between two tries of one that waits for as long as it takes."""


def lock_path(target: Path) -> Path:
    """The lock file of an artefact folder KIND/NAME: ``.locks/KIND-NAME.lock`` of its workspace.

    Outside the folder, so that it outlives a rename; and never deleted, as a waiting writer would
    then hold the lock of a file that nobody else sees.
    """
    return target.parent.parent / ".locks" / f"{target.parent.name}-{target.name}.lock"


def writer_lock(
    target: Path, waiting: Callable[[], None] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Hold the writer's lock of an artefact folder. Raises BusyError if another process does.

    waiting: called once in place of that; the lock is then waited for, for as long as it is held.
    """
    busy = (
        f"{target} is being written by another process; wait until it is done "
        "(see `llmctl status`), or choose another --name"
    )
    return file_lock(lock_path(target), busy, waiting)


@contextlib.contextmanager
def file_lock(path: Path, busy: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock file. Raises BusyError, saying ``busy``, or waits as ``writer_lock`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=GRACE_SECONDS)
    except Timeout:
        if waiting is None:
            raise BusyError(busy) from None
        waiting()
        lock.acquire(poll_interval=WAITING_SECONDS)
    try:
        yield
    finally:
        lock.release()


def is_locked(target: Path) -> bool:
    """Whether a living process holds the writer's lock of an artefact folder."""
    return is_held(lock_path(target))


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock file."""
    if not path.exists():
        return False
    try:
        import fcntl
    except ImportError:  # Windows: no shared lock to ask with, so take the lock for an instant
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
