"""The terminal: results to stdout, everything else to stderr; no colour where nobody looks."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from llmctl.cli.launch import is_rank_zero
from llmctl.reporting.reporter import Record, Reporter
from llmctl.reporting.units import duration, figure
from llmctl.reporting.visible import NEW_LINE, visible
from llmctl.workspace.files import to_json

if TYPE_CHECKING:
    from llmctl.config import Config

LINES_APART = 15.0
"""Seconds between lines of progress where no bar can be drawn (a file, a pipe)."""

MIN_BAR_WIDTH = 100
"""Columns from which on a bar has room beside its figures."""

TRAIN_FIGURES = (
    ("loss", "loss {}", ".4f"),
    ("mlm_accuracy", "MLM {}", ".1%"),
    ("nsp_accuracy", "NSP {}", ".1%"),
    ("lm_accuracy", "next token {}", ".1%"),
    ("bits_per_byte", "{} bits/byte", ".4f"),
    ("accuracy", "accuracy {}", ".1%"),
    ("entity_f1", "entity F1 {}", ".1%"),
    ("tokens_per_second", "{} tokens/s", ",.0f"),
    ("utilisation", "{} of the matrix rate", ".0%"),
    ("padding", "padding {}", ".1%"),
)


def out() -> Console:
    """For results."""
    # Labels and paths are data: brackets and colons in them are no markup.
    return _Console(
        file=sys.stdout,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not sys.stdout.isatty(),
    )


class _Console(Console):
    """Shows control characters of texts, and leaves the end of a pipe to the command."""

    def render_str(self, text: str, *args: Any, **options: Any) -> Text:
        """A text as it is shown; cells of tables come here, too."""
        return super().render_str(visible(text, keep=NEW_LINE), *args, **options)

    def on_broken_pipe(self) -> None:
        """Raises what rich caught: it would end the process with exit code 1."""
        raise


def print_dry_run(document: dict[str, Any], config: Config | None, *, json: bool) -> None:
    """What a dry run has to say: tables on a terminal, one JSON document elsewhere. config: where
    it is one for all that would be made."""
    if json or not sys.stdout.isatty():
        print_json(document)
        return
    from llmctl.reporting.dry_run import render_dry_run

    out().print(render_dry_run(document, config.asked() if config is not None else {}))


def print_json(value: object) -> None:
    """One JSON document on stdout; numbers that aren't finite become null, and what the stream
    can't encode is escaped as JSON does it."""
    text = to_json(value)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    print(text)  # noqa: T201


def wrapped(text: str, width: int) -> str:
    """Text in lines no wider than a terminal, broken between words only: a terminal breaks them in
    the middle of a number. A word that is wider stays whole; indentation is kept."""
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip(" "))]
        now = ""
        for number, word in enumerate(line.split(" ")):
            if now.strip() and cell_len(now) + 1 + cell_len(word) > width:
                lines.append(now.rstrip(" "))
                now = indent + word
            else:
                now += (" " if number else "") + word
        lines.append(now)
    return "\n".join(lines)


class TerminalReporter(Reporter):
    """Draws bars on a terminal, and lines now and then elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        quiet = quiet or not is_rank_zero()
        self._console = _Console(
            stderr=True, highlight=False, markup=False, emoji=False, quiet=quiet
        )
        self._drawn = self._console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20 if self._console.width >= MIN_BAR_WIDTH else 8),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            # Gives way to the others where a terminal is narrow.
            TextColumn(
                "{task.fields[detail]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,
            console=self._console,
            transient=True,
            # Results go where standard output goes, a file perhaps, and not through the bars.
            redirect_stdout=False,
            disable=not self._drawn,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take away what is drawn: results come next, on the same terminal perhaps."""
        if self._drawn:
            self._progress.stop()

    def note(self, text: str) -> None:
        if self._console.is_terminal:
            text = wrapped(text, self._console.width)
        self._console.print(text, soft_wrap=True)

    def progress(self, task: str, done: float, total: float | None, detail: str = "") -> None:
        if task not in self._tasks:
            if self._drawn:
                self._progress.start()
            self._tasks[task] = self._progress.add_task(task, total=total, detail="")
        self._progress.update(self._tasks[task], completed=done, total=total, detail=detail)
        if not self._drawn:
            self._line(task, done, total, detail)
        if total is not None and done >= total:
            self._progress.remove_task(self._tasks.pop(task))
            self._said.pop(task, None)
            if not self._tasks:
                self.clear()  # else it would be drawn anew, over what is written meanwhile

    def metrics(self, record: Record, total: int | None, seconds: float | None = None) -> None:
        step, values = record.step, record.values
        figures = ", ".join(
            text.format(figure(values[name], form))
            for name, text, form in TRAIN_FIGURES
            if name in values
        )
        if record.kind == "validation":
            self.note(f"step {step:>6}  validation: {figures}")
        elif record.kind == "train":
            # Whichever limit comes first, as the trainer has it.
            elapsed = values.get("elapsed", 0.0)
            shares = [step / total if total else 0.0, elapsed / seconds if seconds else 0.0]
            at = f"step {step:,}" + (f" of {total:,}" if total else "")
            if seconds and shares[1] >= shares[0]:
                at += f", {duration(elapsed)} of {duration(seconds)}"
            done = min(1.0, max(shares))
            self.progress("training", done, 1.0 if total or seconds else None, f"{at}, {figures}")

    def _line(self, task: str, done: float, total: float | None, detail: str) -> None:
        now = time.monotonic()
        if now - self._said.setdefault(task, now) >= LINES_APART:
            self._said[task] = now
            share = f" {done / total:.0%}" if total else f" {done:,.0f}" if done else ""
            self.note(f"{task}{share}  {detail}")
