"""Errors meant for the user, and the exit code of each.

Every message is one sentence that names the file, line or option, says what was wrong and what
to do. They are caught once, around the app; anything else that escapes is our own bug (exit 1).
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class LlmctlError(Exception):
    """An error that the user can act on."""

    exit_code = 1
    of_one_process = False
    """Whether, of several processes, one may meet it that isn't the first, and has to tell."""


class UsageError(LlmctlError):
    """An option, a recipe or a configuration that can't be used."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration field that is unknown, of the wrong type or out of range."""


class NameTaken(UsageError):
    """A name under which something else was made: with other options, or from other inputs."""


class InputError(LlmctlError):
    """Input data or an artefact that is missing, malformed or corrupt."""

    exit_code = 3


class BusyError(LlmctlError):
    """Another process is writing the same artefact."""

    exit_code = 4


class ResourceError(LlmctlError):
    """Disk or memory ran out."""

    exit_code = 5
    of_one_process = True


class LostProcess(ResourceError):
    """Another process of the training was lost: all the others meet it."""

    of_one_process = False


class DivergedError(LlmctlError):
    """Training produced losses or gradients that are not finite."""

    exit_code = 6


class LossError(LlmctlError):
    """A model that was made smaller lost more quality than it may."""

    exit_code = 6


class Interrupted(LlmctlError):
    """Stopped by a signal after saving what there was; the exit code is the shell's 128 + n."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system answers when a disk, a quota or a file-size limit is exhausted."""


OOM_MESSAGES = ("can't allocate memory", "could not create a primitive")
"""What PyTorch's allocator on a processor, and oneDNN, say where memory has run out."""


TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
"""What it answers where a process, or the machine, has as many open files as it may."""


NO_ACCESS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT,
        errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV, errno.EBUSY,
    }
)  # fmt: skip
"""What it answers where a path can't be used: its permissions, its kind, its length, links that
lead in a circle, a mount's own folder that can't be replaced, or that it isn't there."""


def record_of(error: Exception) -> list[Any]:
    """An error as JSON has it, for another process to raise: see ``error_of``."""
    text = str(error)
    if isinstance(error, Interrupted):
        return ["Interrupted", text, error.exit_code - 128]
    if isinstance(error, LlmctlError):
        # One of a module's own is told as the nearest that everybody knows.
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == __name__)
        return [kind.__name__, text]
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename
        path = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else None
        return ["OSError", error.errno, os.strerror(error.errno), path]
    if isinstance(error, MemoryError):
        return ["MemoryError", text]
    return ["RuntimeError", f"{type(error).__name__}: {text}"]


def error_of(record: Sequence[Any]) -> Exception:
    """The error that ``record_of`` was given, or one that says the same."""
    name, *rest = record
    builtin = {"OSError": OSError, "MemoryError": MemoryError, "RuntimeError": RuntimeError}
    kind = builtin.get(name) or ERROR_KINDS[name]
    return kind(*rest)


ERROR_KINDS: dict[str, type[LlmctlError]] = {
    kind.__name__: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, LlmctlError)
}
"""The errors by their names."""


MAX_ERROR_LENGTH = 3000
"""Characters of an error: more than anybody reads."""
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(message: str) -> str:
    r"""A message as a terminal can show it: what it quotes, of files that anybody may have written,
    breaks no line, moves no cursor and fills no screen.

    >>> one_line("a\tb")
    'a\\tb'
    """
    if len(message) > MAX_ERROR_LENGTH:
        message = f"{message[: MAX_ERROR_LENGTH * 3 // 4]} … {message[-MAX_ERROR_LENGTH // 4 :]}"
    return _CONTROLS.sub(lambda message: ascii(message[0])[1:-1], message)


LOGITS_NOT_FINITE = (
    "the model's logits are not numbers, or infinite: its training went wrong, or its file is "
    "damaged; copy it again, or train it anew"
)
"""What is said of a model that can't answer. Weights that are finite each can still give sums that
are not."""


@contextmanager
def read_errors_naming(path: object) -> Iterator[None]:
    """What the operating system says of a file that is read becomes an InputError that names it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
