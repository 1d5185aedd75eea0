"""Writing in the background, and who waits for it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import pytest

from llmctl.training.background import Abandoned, BackgroundWriter


def test_a_failure_is_told_at_the_next_occasion():
    writer = BackgroundWriter()
    writer.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    writer.wait()


def test_one_writes_at_a_time():
    writer, order = BackgroundWriter(), list[int]()

    def write(number: int) -> None:
        time.sleep(0.05)
        order.append(number)

    for number in range(3):
        writer.submit(lambda number=number: write(number))  # type: ignore[misc]
        assert order == list(range(number))
    writer.wait()
    assert order == [0, 1, 2]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_write_is_given_up_and_waited_for_though_a_signal_came_while_it_was():
    """A second Ctrl-C, while the first one's checkpoint is written."""
    writer, tidy = BackgroundWriter(), threading.Event()

    def write() -> None:
        try:
            while True:
                time.sleep(0.01)
                writer.check()
        finally:
            time.sleep(0.2)
            tidy.set()

    def handle(number: int, frame: FrameType | None) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, handle)
    try:
        writer.submit(write)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptedError):
            writer.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    writer.abandon()
    assert tidy.is_set()
    with pytest.raises(Abandoned):
        writer.wait()
