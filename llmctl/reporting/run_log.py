"""A run's log: what it said, in plain text, from its first start to its last.

``runs/NAME/log.txt`` grows by a line for each note, each validation, each start and each end, with
the time in UTC. It tells of processes and moments, so it is no part of what a run is known by.
"""

from __future__ import annotations

import os
import platform
import shlex
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmctl import __version__
from llmctl.errors import Interrupted, LlmctlError
from llmctl.reporting.reporter import Record, Reporter
from llmctl.reporting.units import figure
from llmctl.workspace.commands import command_line
from llmctl.workspace.files import errors_naming

LOG = "log.txt"


class LoggedReporter(Reporter):
    """Passes on what a stage says, and writes it down once there is a run to say it of."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._path: Path | None = None
        self._lines: list[str] = []
        """What was said before."""

    def attach(self, folder: Path) -> None:
        """From now on write into a run's folder: first how it was started, and what was said up to
        now."""
        said, self._lines = self._lines, []
        self._path = folder / LOG
        self._append(
            _line(
                f"started: {shlex.join(command_line())} (llmctl {__version__}, process "
                f"{os.getpid()} on {platform.node()}, in {Path.cwd()})"
            ),
            *said,
        )

    def tell(self, text: str) -> None:
        """Write down what nobody needs to see now."""
        if self._path is None:
            self._lines.append(_line(text))
        else:
            self._append(_line(text))

    def ended(self, cause: BaseException) -> None:
        """Write down why a run ended before its end; of our own bugs, where."""
        if isinstance(cause, Interrupted):
            self.tell(f"interrupted: {cause}")
        elif isinstance(cause, LlmctlError | OSError | MemoryError | KeyboardInterrupt):
            self.tell(f"failed: {str(cause) or type(cause).__name__}")
        else:
            self.tell("failed: " + "".join(traceback.format_exception(cause)).rstrip())

    def note(self, text: str) -> None:
        self.tell(text)
        self._reporter.note(text)

    def progress(self, task: str, done: float, total: float | None, detail: str = "") -> None:
        self._reporter.progress(task, done, total, detail)

    def metrics(self, record: Record, total: int | None, seconds: float | None = None) -> None:
        if record.kind == "validation":
            of = f" of {total}" if total else ""
            self.tell(f"step {record.step}{of}: validation {told(record.values)}")
        self._reporter.metrics(record, total, seconds)

    def _append(self, *lines: str) -> None:
        assert self._path is not None
        with errors_naming(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))


def told(values: dict[str, Any]) -> str:
    """Figures in a line."""
    return ", ".join(
        f"{name} {figure(value, '.4f')}"
        for name, value in values.items()
        if isinstance(value, float)
    )


def _line(text: str) -> str:
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{moment}  " + text.replace("\n", "\n" + " " * 21) + "\n"
