"""What every command does around its stage: which error becomes which sentence and exit code."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar, cast

from llmctl.cli.launch import is_local_rank_zero, is_rank_zero
from llmctl.cli.streams import INTERRUPTED, OUTPUT, command_begins, drop_output, interrupted, tell
from llmctl.cli.threads import settle_threads
from llmctl.errors import (
    NO_ACCESS,
    NO_SPACE,
    OOM_MESSAGES,
    TOO_MANY_FILES,
    LlmctlError,
    one_line,
)
from llmctl.reporting.visible import NEW_LINE, visible

NO_MEMORY = "out of memory; use a smaller batch or model, or a machine with more"
OUT_OF_MEMORY = (
    *OOM_MESSAGES, "out of memory", "cannot allocate memory", "failed to map segment",
)  # fmt: skip
"""Besides, what is said of a GPU's, by the system, and by its loader."""
LESS_MEMORY = {
    **dict.fromkeys(("pretrain", "finetune", "sweep", "plan"), "lower training.batch_size"),
    **dict.fromkeys(("generate", "evaluate"), "lower --set batch_size, or take a smaller model"),
    "tokenize": "use fewer --workers",
}
"""What takes less memory, by the module of a command."""

ERROR_REPORT_GRACE = 3.0
"""For the process that tells to come to the same error."""
LAST_RESORT_SECONDS = 8.0
"""For a process to end after SIGTERM: less than the ten that whoever sends it waits."""

COMPUTES = {"threads", "workers"}
"""Options by which a command is known for one that computes."""

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors become one sentence on stderr and an exit code (0 done, 1 our bug,
    2 usage, 3 input, 4 busy, 5 disk or memory, 6 diverged, 130 and 143 signals)."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        signal.signal(signal.SIGTERM, _terminate)
        command_begins()
        if not is_rank_zero():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        try:
            if COMPUTES & kwargs.keys():
                settle_threads(
                    cast(int | None, kwargs.get("threads")), cast(int | None, kwargs.get("nproc"))
                )
            result = command(*args, **kwargs)
            sys.stdout.flush()
            return result
        except (Exception, KeyboardInterrupt, _Terminated) as error:
            _end(error, command.__module__.rpartition(".")[2])

    return run


def _end(error: BaseException, module: str) -> NoReturn:
    """Leave with what there is to say of an error. module: of the command that it ended."""
    if isinstance(error, KeyboardInterrupt):
        _stop(INTERRUPTED)
    if isinstance(error, LlmctlError):
        if error.exit_code == 128 + signal.SIGINT:
            _stop(str(error))
        _fail(str(error), error.exit_code, told_by_all=error.of_one_process)
    if isinstance(error, _Terminated):
        _fail("stopped by SIGTERM; nothing half-written was left", cast(int, error.code))
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) has enough: leave quietly, as other tools do.
        drop_output()
        sys.exit(141)
    if isinstance(error, MemoryError):
        _fail(NO_MEMORY, 5, told_by_all=True)
    if isinstance(error, OSError):
        _end_by_system(error)
    elif isinstance(error, UnicodeEncodeError):
        if error.reason == "surrogates not allowed":
            _fail(
                "a name or a text on the command line is not UTF-8: "
                f"{error.object[error.start : error.start + 20]!a}; rename the file, or "
                "give the text in a file",
                2,
            )
    elif any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
        less = LESS_MEMORY.get(module, "take a smaller model, or a machine with more")
        _fail(f"out of memory: {str(error).splitlines()[0]}; {less}", 5, told_by_all=True)
    _bug(error)


def _end_by_system(error: OSError) -> None:
    """Leave with what there is to say of the operating system's error, if that is known."""
    name = os.fsdecode(error.filename) if error.filename else ""
    if error.errno in NO_ACCESS and name:
        _fail(
            f"{name} can't be read or written: {error.strerror}; check the path and its "
            "permissions",
            3,
        )
    message = None
    if error.errno in NO_SPACE:
        if name == OUTPUT:
            drop_output()
        elif not name:  # all that we write ourselves has a name
            import tempfile

            name = f"{tempfile.gettempdir()} or /dev/shm, as it is not the workspace"
        message = (
            f"the disk is full ({name}): {os.strerror(error.errno or 0)}; free some space and "
            "run the command again, it goes on where it was"
        )
    elif error.errno == errno.ENOMEM:
        message = NO_MEMORY
    elif error.errno in TOO_MANY_FILES:
        message = (
            f"too many files are open ({os.strerror(error.errno or 0)}); allow more (ulimit -n "
            "4096), or use fewer processes"
        )
    elif error.errno == errno.EIO:
        message = f"{name or 'a file'}: {error.strerror}; the disk may be failing"
    if message:
        _fail(message, 5, told_by_all=True)


class _Terminated(SystemExit):
    """SIGTERM came."""


def _terminate(number: int, frame: FrameType | None) -> None:
    code = 128 + number
    # Where a signal comes while a library cleans up, what is raised here is dropped.
    last_resort = threading.Timer(LAST_RESORT_SECONDS, os._exit, (code,))
    last_resort.daemon = True
    last_resort.start()
    raise _Terminated(code)


def _fail(message: str, code: int, *, told_by_all: bool = False) -> NoReturn:
    """told_by_all: by whichever of several processes meets it, not by the first alone."""
    _print_trace()
    if told_by_all or is_local_rank_zero():
        tell(f"error: {one_line(message)}")
    else:  # an end without a word would have the one that tells of it stopped first
        time.sleep(ERROR_REPORT_GRACE)
    sys.exit(code)


def _stop(message: str) -> NoReturn:
    """End by Ctrl-C, which is no error."""
    if is_rank_zero():
        tell(visible(message, keep=NEW_LINE))
    else:
        time.sleep(ERROR_REPORT_GRACE)
    sys.exit(128 + signal.SIGINT)


def _bug(error: BaseException) -> NoReturn:
    if interrupted():  # which a library has made something else of
        _stop(INTERRUPTED)
    _print_trace()
    said = one_line(f"{type(error).__name__}: {error}")
    tell(
        f"error: this is a bug in llmctl ({said}); run the command again as `llmctl --debug …` and "
        "report what it prints"
    )
    sys.exit(1)


def _print_trace() -> None:
    """With ``--debug``, what led to the error that is being handled."""
    if os.environ.get("LLMCTL_DEBUG"):
        traceback.print_exc()
