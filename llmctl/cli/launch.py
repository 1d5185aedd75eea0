"""Several processes for one command: ``--nproc`` starts them, and each finds in its environment
which of them it is, in the variables that torchrun sets. One speaks; the others keep silent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from llmctl.errors import UsageError

LAUNCHER, START_TIME = "LLMCTL_LAUNCHER", "LLMCTL_BEGUN"
"""In the environment of what ``--nproc`` started: the number of the process that did, and when."""


def is_rank_zero() -> bool:
    """Whether this process is the one of its training that reports and prints."""
    return os.environ.get("RANK", "0") == "0"


def is_local_rank_zero() -> bool:
    """Whether this process is the one of its machine that tells of an error."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def start_time() -> float:
    """When this command began, by time.perf_counter, which all processes of a machine share."""
    return float(os.environ.get(START_TIME, time.perf_counter()))


def launch_processes(nproc: int | None, max_restarts: int) -> None:
    """Start this very command in ``nproc`` processes and leave with their exit code; returns
    where it was not asked for, and in those processes."""
    if "RANK" in os.environ:
        if LAUNCHER in os.environ:
            _stop_with(int(os.environ[LAUNCHER]))
    elif nproc is not None and nproc > 1:
        _launch(nproc, max_restarts)


def _stop_with(launcher: int) -> None:
    """Be sent SIGTERM when the launcher is gone, which may have been killed without a word."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != launcher:  # gone before that
        signal.raise_signal(signal.SIGTERM)


PR_SET_PDEATHSIG = 1
"""The option's name in prctl(2)."""


@contextmanager
def data_parallel(nproc: int | None, *, reads_stdin: bool) -> Iterator[None]:
    """Start this command in ``nproc`` processes, which divide its work; within the block they can
    tell each other. Raises UsageError for standard input, which they can't divide."""
    launch_processes(nproc, 0)
    if "RANK" not in os.environ:
        yield
        return
    if reads_stdin and os.environ.get("WORLD_SIZE") != "1":
        raise UsageError("several processes can't divide standard input; give a file")
    from llmctl.training.distributed.processes import process_group

    with process_group():
        yield


def _launch(nproc: int, max_restarts: int) -> NoReturn:
    started = time.perf_counter()
    from llmctl.training.distributed.supervisor import Supervisor

    told = {LAUNCHER: str(os.getpid()), START_TIME: repr(started)}
    command = [sys.executable, "-m", "llmctl", *sys.argv[1:]]
    code = Supervisor(command, nproc, told).run(max_restarts)
    if code < 0:
        print(  # noqa: T201
            f"error: one of the processes was killed by signal {-code}; run the command again, "
            "a training goes on from its last checkpoint (--max-restarts does so by itself)",
            file=sys.stderr,
        )
        code = 128 - code
    sys.exit(code)
