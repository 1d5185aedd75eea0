"""Runs a reader on one input after another in child processes, and tells how each ended.

The parent has imported all that readers need, so a child is there at once: it is forked, reads
input after input, and says so in a pipe. Whatever it does to itself (a signal, a hang, memory) is
seen from outside; the next child goes on behind the input that did it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.cli.guard import guarded
from tests.robustness.mutators import BY_HYPOTHESIS, Mutators

KINDS = ("ok", "refused", "bug", "wrong", "panic", "signal", "hang", "memory", "outside")
"""How reading an input can end: it is read; an error says in a sentence what is wrong with it (exit
codes 2 to 6); it is called a bug of ours (exit code 1); something false is made of it; an exception
goes past every handler; the process dies; it hangs; it takes too much memory; it touches what is
outside the scratch folder, or starts a program."""
RIGHT = ("ok", "refused")

INPUTS_OF_A_CHILD = 250
"""Then another is forked: what libraries keep is dropped."""
LONGEST_SENTENCE = 4000
"""Characters of an error."""


@dataclass(frozen=True)
class Limits:
    """What a reader may take for one input."""

    seconds: float = 20.0
    bytes: int = 2 << 30


@dataclass(frozen=True)
class Reader:
    """A place where llmctl reads what somebody else may have written."""

    name: str
    make: Callable[[Path], None]
    """Writes sound files into a folder."""
    targets: dict[str, str]
    """Files of it that are changed, and the form that each is in, as the mutators know it."""
    read: Callable[[Path], Any]
    """Reads the folder as a command would."""
    check: Callable[[Any], None] = lambda result: None
    """Asserts what holds of anything that was read."""
    seal: Callable[[Path], None] = lambda folder: None
    """Makes the rest of the folder fit what was changed: whoever can write a file can write its
    digest."""
    fresh: bool = False
    """Whether reading changes the folder, so that each input needs it anew."""
    slow: bool = False
    """Whether it trains: it gets a tenth of the inputs."""


@dataclass(frozen=True)
class Ending:
    """What became of an input."""

    number: int
    kind: str
    detail: str = ""
    seconds: float = 0.0


def run(
    reader: Reader,
    base: dict[str, bytes],
    numbers: range,
    limits: Limits,
) -> Iterator[Ending]:
    """Read some inputs, each made from its number alone."""
    draw_once()
    begin = numbers.start
    while begin < numbers.stop:
        part = range(begin, min(begin + INPUTS_OF_A_CHILD, numbers.stop))
        for ending in _run_child(reader, base, part, limits):
            yield ending
            begin = ending.number + 1


@functools.cache
def draw_once() -> None:
    """Let hypothesis load what it draws from before this process is forked: half a second that each
    child would take."""
    Mutators("", {"input": "text"}, {"input": b"a"}).input(BY_HYPOTHESIS - 1)


def in_child(work: Callable[[], None]) -> None:
    """Do something in a forked child, so that this process stays as it was."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the sound files could not be made")


def _run_child(
    reader: Reader, base: dict[str, bytes], numbers: range, limits: Limits
) -> Iterator[Ending]:
    """The endings of a child: of all numbers, or up to the one that ended it."""
    with tempfile.TemporaryDirectory(prefix="robustness-") as scratch:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _child(reader, base, numbers, limits, Path(scratch), writing)
        os.close(writing)
        try:
            yield from _watched(pid, reading, numbers, limits, Path(scratch))
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _watched(
    pid: int, reading: int, numbers: range, limits: Limits, scratch: Path
) -> Iterator[Ending]:
    pending, number = b"", numbers.start
    while True:
        if not select.select([reading], [], [], limits.seconds)[0]:
            yield Ending(number, "hang", f"more than {limits.seconds:g} s", limits.seconds)
            return
        block = os.read(reading, 1 << 16)
        if not block:
            break
        *lines, pending = (pending + block).split(b"\n")
        for line in lines:
            ending = Ending(**json.loads(line))
            yield ending
            number = ending.number + 1
    status = os.waitpid(pid, 0)[1]
    if number < numbers.stop:
        said = (scratch / "stderr").read_text(errors="replace")[-300:].strip()
        no_memory = any(sign in said for sign in ("memory allocation of", "bad_alloc"))
        what = (
            signal.Signals(os.WTERMSIG(status)).name
            if os.WIFSIGNALED(status)
            else f"it ended with {os.waitstatus_to_exitcode(status)}"
        )
        yield Ending(number, "memory" if no_memory else "signal", f"{what}; {said}")


def _child(
    reader: Reader,
    base: dict[str, bytes],
    numbers: range,
    limits: Limits,
    scratch: Path,
    writing: int,
) -> None:
    """Read the inputs, and end."""
    try:
        folder = scratch / "work"
        folder.mkdir()
        os.chdir(folder)
        faulthandler.disable()
        # What the libraries print themselves; llmctl's sentences are caught in Python.
        os.dup2(os.open(scratch / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.dont_write_bytecode = True
        tempfile.tempdir = str(folder)
        outside = _watch_outside(scratch)
        taken = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (taken + limits.bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        mutators = Mutators(reader.name, reader.targets, base)
        _lay(folder, base)
        for number in numbers:
            changed = mutators.input(number)
            _lay(folder, changed)
            outside.clear()
            begin = time.perf_counter()
            kind, detail = _ending_of(reader, folder, limits)
            if outside:
                kind, detail = "outside", outside[0]
            ending = Ending(number, kind, detail[:600], round(time.perf_counter() - begin, 3))
            os.write(writing, json.dumps(ending.__dict__).encode() + b"\n")
            if reader.fresh:
                shutil.rmtree(folder, ignore_errors=True)
                _lay(folder, base)
                os.chdir(folder)
            else:
                _lay(folder, {name: base[name] for name in changed})
    except BaseException as error:
        os.write(2, f"the harness itself: {type(error).__name__}: {error}".encode())
        os._exit(70)
    os._exit(0)


def _lay(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _ending_of(reader: Reader, folder: Path, limits: Limits) -> tuple[str, str]:
    """Kind and detail of an input that does not end the process."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted anew
    said = io.StringIO()
    kind, detail = "ok", ""
    with contextlib.redirect_stderr(said):
        try:
            reader.seal(folder)
            result = guarded(lambda: reader.read(folder))()
            try:
                reader.check(result)
            except AssertionError as error:
                kind, detail = "wrong", str(error) or "what was read is not what it ought to be"
        except SystemExit as end:
            kind, detail = _kind_of(end.code, said.getvalue())
        except MemoryError:
            kind = "memory"
        except BaseException as error:
            kind, detail = "panic", f"{type(error).__name__}: {error}"
    peak = _peak()
    if peak > limits.bytes:
        kind, detail = "memory", f"{peak / 1e9:.1f} GB"
    return kind, detail


def _kind_of(code: object, said: str) -> tuple[str, str]:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 1:
        return "bug", errors[0] if errors else said
    if code == 5:
        return "memory", said
    rest = said.partition("error: ")[2].strip()
    if len(errors) != 1 or "\n" in rest or len(rest) > LONGEST_SENTENCE:
        return "wrong", f"no single sentence: {said[:300]!r}"
    return "refused", errors[0]


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


PROGRAMS = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
)
CHANGES = frozenset({"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch_outside(scratch: Path) -> list[str]:
    """What is written outside a folder, and which programs are started, from now on."""
    found: list[str] = []
    allowed = (str(scratch.resolve()), os.devnull, "/proc/self/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in PROGRAMS:
            found.append(f"{event} {arguments!r}")
        elif event in CHANGES or (event == "open" and _writes(arguments)):
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                if isinstance(path, str | bytes):
                    whole = os.path.abspath(os.fsdecode(path))
                    if not whole.startswith(allowed):
                        found.append(f"{event} {whole}")

    sys.addaudithook(hook)
    return found


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & WRITING)


def base_files(reader: Reader) -> dict[str, bytes]:
    """The sound files of a reader, made in a child; once for all readers that have the same."""
    return _made(reader.make)


@functools.cache
def _made(make: Callable[[Path], None]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="robustness-") as scratch:
        folder = Path(scratch) / "base"
        folder.mkdir()
        in_child(lambda: make(folder))
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def sound(reader: Reader, base: dict[str, bytes], limits: Limits) -> Ending:
    """How the sound files themselves are read: all that is found is worth nothing if they aren't
    ``ok``."""
    unchanged = replace(reader, targets={})
    return next(iter(run(unchanged, base, range(1), limits)))
