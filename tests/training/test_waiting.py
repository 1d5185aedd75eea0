"""Threads that wait sleep while others use the machine, and look for each other when they don't."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from llmctl.training import waiting
from llmctl.training.machine import Watch, allowed_cores
from llmctl.training.waiting import WaitingThread, extra_threads


@pytest.mark.parametrize(
    ("cores", "threads", "extra"),
    # Each brings all of a team but its first: the total must be more than the cores.
    [(2, 1, 0), (2, 2, 1), (4, 2, 3), (8, 4, 2), (64, 64, 1), (64, 32, 2), (2, 4, 1)],
)
def test_extra_threads_make_more_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, extra: int
):
    monkeypatch.setattr(waiting, "allowed_cores", lambda: set(range(cores)))
    assert extra_threads(threads) == extra
    if threads > 1:
        assert threads + extra * (threads - 1) > cores


def test_extra_threads_come_and_go_with_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "extra_threads", lambda threads: 2)
    before = threading.active_count()
    thread = WaitingThread(Watch(0.0, 0.0, 0.0))
    thread.heed(0.1)
    assert threading.active_count() == before
    thread.heed(1.4)
    thread.heed(1.6)
    assert threading.active_count() == before + 2
    thread.heed(0.1)
    assert threading.active_count() == before


def test_a_module_that_is_being_loaded_is_not_loaded(tmp_path: Path, monkeypatch: Any):
    (tmp_path / "half.py").write_text(
        "from llmctl.training.waiting import _is_loaded\nduring = _is_loaded('half')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert not waiting._is_loaded("half")
    import half  # type: ignore[import-not-found]

    assert half.during is False
    assert waiting._is_loaded("half")


SCRIPT = """
import os, time
import torch
from llmctl.training.machine import Watch, allowed_cores
from llmctl.training.waiting import WaitingThread
torch.set_num_threads(2)
numbers = torch.ones(1 << 18)
def share():
    "Processor seconds for each second that a thread waits between two pieces of work."
    begun, used = time.perf_counter(), sum(os.times()[:2])
    while time.perf_counter() - begun < 0.3:
        numbers.add_(1)
        time.sleep(0.005)
    return (sum(os.times()[:2]) - used) / (time.perf_counter() - begun)
numbers.add_(1)
thread = WaitingThread(Watch(0.0, 0.0, 0.0))
looking = share()
thread.heed(2.0)
sleeping = share()
thread.heed(0.0)
print(looking, sleeping, share())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or len(allowed_cores()) != 2, reason="libgomp, and made for two cores"
)
def test_the_library_itself_heeds_it():
    """A thread that looks for its fellow uses its core between two pieces of work: half of the time
    where another process keeps the core, as much as a tenth for a moment's work and no look."""
    kept = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment
    )
    looking, sleeping, again = map(float, result.stdout.split())
    assert sleeping < 0.6 * looking
    assert sleeping < 0.6 * again
