"""Writing behind training's back: one thing at a time, each failure told at the next occasion."""

from __future__ import annotations

import threading
from collections.abc import Callable

SECONDS_TO_ABANDON = 2.0
"""For a write that is given up to notice and to tidy: who stops at once won't wait for a disk."""


class Abandoned(Exception):
    """A write was given up."""


class BackgroundWriter:
    """A thread for each write, at most one at a time.

    The thread dies with its process, at any moment: what it writes must appear whole or not at
    all, as ``published_folder`` has it.
    """

    def __init__(self) -> None:
        # Not the thread's own end: waiting for that, when a signal's handler raises, takes it for
        # reached (CPython 3.11).
        self._idle = threading.Event()
        self._idle.set()
        self._failure: BaseException | None = None
        self._given_up = threading.Event()

    def submit(self, write: Callable[[], None]) -> None:
        """Begin a write once the one before is done. Raises what that one ended with."""
        self.wait()
        self._idle.clear()
        threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait for the write under way. Raises what it ended with."""
        self._idle.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        """Give up the write under way: what it has written so far goes."""
        self._given_up.set()
        self._idle.wait(SECONDS_TO_ABANDON)

    def check(self) -> None:
        """To be called by what writes, between its parts. Raises Abandoned if it is given up."""
        if self._given_up.is_set():
            raise Abandoned

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self._failure = error
        finally:
            self._idle.set()
