"""Threads: how many compute, and how one waits for the next piece of work.

How many is settled before PyTorch is loaded, as its libraries read that once; how they wait, while
it computes: see llmctl/training/waiting.py.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from llmctl.errors import UsageError

if TYPE_CHECKING:
    from llmctl.reporting.reporter import Reporter
    from llmctl.training.machine import Watch
    from llmctl.training.waiting import WaitingThread

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COUNTING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What users set themselves, which stays."""

_watch: Watch | None = None
"""Since this command began."""
_waits: WaitingThread | None = None
"""One for the process."""


def settle_threads(threads: int | None, nproc: int | None) -> None:
    """Set, for this process and those it starts, what the libraries go by that are loaded later.

    threads: of each process, as the option says; None: a core's each, divided among ``nproc``
    processes. Raises UsageError if it is more than there are cores for.
    """
    global _watch, _waits
    from llmctl.training.machine import THREADS_OPEN, Watch, cores, quota_cores

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", nproc or 1))
    if threads is not None:
        most = max(1, cores() // processes)
        if threads > most:
            each = f" for each of {processes} processes" if processes > 1 else ""
            raise UsageError(
                f"--threads {threads}{each} is more than the {cores()} cores that this command may "
                f"use; give at most {most}"
            )
        os.environ.pop(THREADS_OPEN, None)
        os.environ.update(dict.fromkeys(COUNTING, str(threads)))
        if "torch" in sys.modules:  # which has read its settings already
            import torch

            torch.set_num_threads(threads)
    elif not any(name in os.environ for name in COUNTING):
        if processes > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // processes))
        elif (granted := quota_cores()) is not None:
            os.environ["OMP_NUM_THREADS"] = str(granted)
        os.environ[THREADS_OPEN] = "1"
    _watch = Watch.begin()
    if _watch and not _waits and not any(name in os.environ for name in WAITING):
        from llmctl.training.waiting import WaitingThread

        _waits = WaitingThread(_watch, processes)
        _waits.start()


def note_others(reporter: Reporter, advice: str = "fewer --threads may be faster") -> None:
    """Say at the start of a long command that others use the machine, where they do.

    advice: what to do if they stay. Nothing is said before enough time has gone by to tell.
    """
    from llmctl.training.machine import SHORTEST_WATCH, cores, is_busy

    if _watch is None or _watch.seconds < SHORTEST_WATCH:
        return
    others = _watch.others(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if is_busy(others):
        reporter.note(
            f"other processes use about {others:.1f} of {cores()} cores: this takes longer than on "
            f"a quiet machine; if they stay, {advice}"
        )
