"""Standard streams and signals as a command finds them: closed, of another encoding, a reader that
leaves, Ctrl-C while libraries load.

Nothing heavy is imported here: it runs before everything else.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

OUTPUT = "standard output"
"""What errors call it, in the place of a file's name."""

INTERRUPTED = "interrupted; nothing half-written was left"

IMPORTING = "<frozen importlib._bootstrap>"
"""The file that Python names for the functions that import modules."""


class _State:
    """What this process has printed and changed."""

    in_command = False
    """Whether a command has begun, which has its own ways to end."""
    interrupted = False
    """Whether Ctrl-C came; libraries can turn what it raises into errors of their own."""


def interrupted() -> bool:
    """Whether Ctrl-C came since the command began."""
    return _State.interrupted


def main() -> None:
    """Run the command line."""
    prepare()
    from llmctl.cli.app import app

    try:
        app()
    except OSError as error:  # of help and usage, which come before a command
        drop_output()
        tell(f"error: what is printed can't be written: {error.strerror}; free some space")
        sys.exit(5)


def tell(text: str) -> None:
    """A line on standard error, if that can be written."""
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        drop_output()


def prepare() -> None:
    """Make the streams and signals of this process what commands count on."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding, or half of a surrogate pair, is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = _named(sys.stdout)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    if hasattr(signal, "SIGPIPE"):  # `llmctl --help | head`; a command itself says how it ends
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def command_begins() -> None:
    """From now on Ctrl-C and a reader that leaves are exceptions: there may be work to save."""
    _State.in_command = True
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def drop_output() -> None:
    """What could not be written is not tried again at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


class _Output(io.FileIO):
    """Standard output, which says so where it can't be written: what a full disk leaves untold
    could be any file."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            error.filename = OUTPUT
            raise


def _named(stream: TextIO) -> TextIO:
    """A stream with errors that name it, where it is a file of the system's."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    unbuffered = isinstance(stream.buffer, io.FileIO)  # python -u
    if not unbuffered and not isinstance(getattr(stream.buffer, "raw", None), io.FileIO):
        return stream
    raw = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _open_closed_streams() -> None:
    """A closed stream reads as empty and forgets what is written. Its number must not become that
    of the next file, which everything that prints would then write into."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _interrupt(number: int, frame: FrameType | None) -> None:
    _State.interrupted = True
    place = frame
    importing = False
    while place is not None and not importing:
        importing, place = place.f_code.co_filename == IMPORTING, place.f_back
    if importing or not _State.in_command:
        # A library that is being loaded can't be left by an exception: it may become any other.
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(128 + number)
    raise KeyboardInterrupt
