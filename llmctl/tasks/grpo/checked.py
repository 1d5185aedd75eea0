"""Rewards that run in a process of their own: a function of a file, and a pattern, either of which
may never end."""

from __future__ import annotations

import contextlib
import json
import math
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import InputError

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 60.0
"""Within which a file must be loaded: it may import large libraries."""
LARGEST_REWARD = 1e9
"""The largest reward, up or down: differences between answers would be lost in single precision."""
SHOWN = 60
"""Characters of an answer that a message shows."""


class RewardError(InputError):
    """A reward that can't be computed."""

    of_one_process = True


class RewardProcess:
    """A process that computes rewards, a line for each answer."""

    def __init__(self, described: str, words: Sequence[str], *, file: str, seconds: float) -> None:
        """described: what computes them, for messages. words: of the worker. file: with the
        function, if there is one. seconds: that an answer may take.

        Raises RewardError if it can't be loaded.
        """
        self._described, self._words, self._file = described, list(words), file
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""
        self._start()

    def __call__(self, answer: str, row: Mapping[str, Any], source: str) -> float:
        """The reward of an answer to a row. Raises RewardError naming the file, its line and the
        row where there is none."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        shown = answer if len(answer) <= SHOWN else f"{answer[:SHOWN]}…"
        of = f"on the answer {shown!r} to {source}"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps([answer, row], default=str)}\n".encode())
            self._process.stdin.flush()
        told = self._line(self._seconds)
        if told is None:
            raise RewardError(
                f"{self._described} did not end within {self._seconds:g} s {of}; make it faster, "
                "or raise objective.reward_seconds"
            )
        if "error" in told:
            line = f":{told['line']}" if told.get("line") else ""
            raise RewardError(
                f"{self._file or self._described}{line}: {self._described} raised "
                f"{told['error']} {of}; let it return a number for every answer"
            )
        value = told.get("reward")
        if value is None or not math.isfinite(value):
            returned = told.get("returned", value)
            raise RewardError(f"{self._described} returned {returned} {of}; return a finite number")
        if abs(value) > LARGEST_REWARD:
            raise RewardError(
                f"{self._described} returned {value:g} {of}; return a number from "
                f"{-LARGEST_REWARD:g} to {LARGEST_REWARD:g}"
            )
        return float(value)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        weakref.finalize(self, _end, self._process)
        self._read = b""
        told = self._line(START_SECONDS)
        if told is None:
            raise RewardError(
                f"{self._described} was not loaded within {START_SECONDS:g} s; "
                f"{self._file or 'it'} must end when it is imported"
            )
        if "error" in told:
            line = f":{told['line']}" if told.get("line") else ""
            raise RewardError(f"{self._file or self._described}{line}: {told['error']}")

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """What the process tells next; None, and it is ended, if it takes longer."""
        assert self._process is not None
        assert self._process.stdout is not None
        stream, until = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._read:
            left = until - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                self._close()
                return None
            part = self._process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            if not part:
                code = self._process.wait()
                self._close()
                return {"error": f"SystemExit (its process ended with exit code {code})"}
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def _close(self) -> None:
        if self._process is not None:
            _end(self._process)
        self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
