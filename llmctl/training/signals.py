"""SIGINT and SIGTERM, for a while handled in another way: a training ends with a checkpoint."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from llmctl.errors import Interrupted

DUPLICATE_SIGNAL_WINDOW = 0.5 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
"""Seconds within which a signal that comes again is the same one."""

Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextlib.contextmanager
def signals_handled_by(handler: Handler) -> Iterator[None]:
    """Within, both go to ``handler``; in a thread of its own, where none can be set, as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopFlag:
    """Set by the first SIGINT or SIGTERM; the second stops at once, as does the first while there
    is nothing to save: until training asks, after its first step."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._since = -math.inf
        self.raised: Interrupted | None = None
        """What stopped at once: on its way through a library it may have become another error."""
        self._worth_saving = False

    def __call__(self) -> bool:
        self._worth_saving = True
        return self.signal_number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        # What a terminal sends to all of a job's processes torchrun passes on to its own once more.
        if (
            number == self.signal_number
            and time.monotonic() - self._since < DUPLICATE_SIGNAL_WINDOW
        ):
            return
        second = self.signal_number is not None
        self.signal_number, self._since = number, time.monotonic()
        if second:
            self.raised = Interrupted("stopped at once by a second signal", number)
        elif not self._worth_saving:
            self.raised = Interrupted(
                f"stopped by {signal.Signals(number).name} before a step was done, so there was "
                "nothing to save; the same command begins where this one did",
                number,
            )
        if self.raised is not None:
            raise self.raised


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM set while the block runs."""
    flag = StopFlag()
    try:
        with signals_handled_by(flag.handle):
            yield flag
    except Exception as error:
        if flag.raised is not None and flag.raised is not error:
            raise flag.raised from error
        raise
