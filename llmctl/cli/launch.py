"""Several processes for one command: ``--nproc`` starts them through torchrun's own launcher, and
each finds in its environment which of them it is. One speaks; the others keep silent."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from llmctl.errors import UsageError

OPTION = "--nproc"


def speaks() -> bool:
    """Whether this process is the one of its training that reports and prints."""
    return os.environ.get("RANK", "0") == "0"


def first_on_machine() -> bool:
    """Whether this process is the one of its machine that tells of an error."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def run_together(nproc: int | None, max_restarts: int) -> None:
    """Start this very command in ``nproc`` processes and leave with their exit code; returns
    where it was not asked for, and in those processes."""
    if nproc is not None and nproc > 1 and "RANK" not in os.environ:
        _launch(nproc, max_restarts)


@contextmanager
def divided(nproc: int | None, *, reads_stdin: bool) -> Iterator[None]:
    """Start this command in ``nproc`` processes, which divide its work; within the block they can
    tell each other. Raises UsageError for standard input, which they can't divide."""
    run_together(nproc, 0)
    if "RANK" not in os.environ:
        yield
        return
    if reads_stdin and os.environ.get("WORLD_SIZE") != "1":
        raise UsageError("several processes can't divide standard input; give a file")
    from llmctl.training.distributed import joined

    with joined():
        yield


def _launch(nproc: int, max_restarts: int) -> NoReturn:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // nproc)))
    # What it has to say is in the processes' own messages already.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "llmctl", *_without_option(sys.argv[1:]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code = failure.exitcode
        if code < 0:
            print(  # noqa: T201
                f"error: one of the processes was killed by signal {-code}; run the command again, "
                "a training goes on from its last checkpoint (--max-restarts does so by itself)",
                file=sys.stderr,
            )
            code = 128 - code
        sys.exit(code)
    except SignalException as error:
        sys.exit(128 + error.sigval.value)
    sys.exit(0)


def _without_option(words: list[str]) -> list[str]:
    """The command line for each of the processes."""
    if OPTION in words:
        place = words.index(OPTION)
        return words[:place] + words[place + 2 :]
    rest = [word for word in words if not word.startswith(f"{OPTION}=")]
    if len(rest) == len(words):
        raise UsageError(f"{OPTION} must be on the command line itself")
    return rest
