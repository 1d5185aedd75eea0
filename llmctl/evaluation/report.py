"""The report of an evaluation: what models and baselines come to on the same data.

A report is rows with figures, paired differences between the first row and the others, notes, and
what was measured on what. As a document of JSON values it is kept and printed with ``--json``; a
task says with ``Figure`` and ``Gap`` how its figures are written out for people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from llmctl.reporting.report import ReportTable
from llmctl.reporting.units import figure

MODEL = "model"
"""The row of the model that is measured, as documents have it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, in JSON values."""

    task: str
    """What was measured: a report's kind."""
    data: str
    """On what."""
    model: str = ""
    """The name of the model, as it was given."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is to be known of the measurement."""
    results: Mapping[str, Any]
    """Rows of figures by name, ``model`` first; of some kinds the model's figures alone."""
    differences: Mapping[str, Mapping[str, Any]] | None = None
    """How the first row differs from others: ``difference`` with its interval, ``low`` to ``high``;
    None where nothing is compared."""
    notes: list[str] = field(default_factory=list)
    summary: Mapping[str, Any]
    """The figures that ``llmctl status`` shows."""

    def document(self) -> dict[str, Any]:
        """The report as it is kept."""
        compared = {} if self.differences is None else {"differences": self.differences}
        return {
            "model": self.model,
            "task": self.task,
            "data": self.data,
            **self.facts,
            "results": self.results,
            **compared,
            "notes": self.notes,
            "summary": self.summary,
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """A report that was kept. Raises TypeError where a part is missing that all have."""
        known = {entry.name for entry in fields(cls)} - {"facts"}
        parts = {name: value for name, value in document.items() if name in known}
        facts = {name: value for name, value in document.items() if name not in known}
        return cls(facts=facts, **parts)

    def shown(self, row: str) -> str:
        """The name of a row: that of the model for ``model`` and ``model, 4 shots``."""
        first, comma, rest = row.partition(",")
        return f"{self.model}{comma}{rest}" if first == MODEL else row

    def table(self, title: str, figures: Sequence[Figure]) -> ReportTable:
        """A table of all rows."""
        return ReportTable(
            title,
            [entry.heading for entry in figures],
            [
                [self.shown(name), *(entry.cell(row) for entry in figures)]
                for name, row in self.results.items()
            ],
        )

    def gaps(self, gap: Gap) -> Iterator[str]:
        """A line for each difference."""
        for name, difference in (self.differences or {}).items():
            yield f"{gap.of} over {self.shown(name)}: {gap.cell(difference)}"

    def remarks(self) -> Iterator[str]:
        """A line for each note, and for what the model's pretraining has hardly learned."""
        learned = self.facts.get("learned")  # not in reports of earlier versions
        for note in (*self.notes, *([learned] if learned else [])):
            yield f"note: {note}"


@dataclass(frozen=True)
class Figure:
    """A column of a table: which figure of a row it shows, and how."""

    heading: str
    key: str
    """Where the figure stands in a row: ``mcc``, or ``blocks.loss`` for a row in the row."""
    form: str = ".3f"
    interval: str | None = None
    """Where its interval stands, if it is shown."""
    ends: str = ".1f"
    """How the ends of the interval are written."""
    scale: float = 1
    """What the ends are multiplied by, such as 100 where the figure is written in percent."""
    optional: bool = False
    """Whether there may be rows without it, for which a dash stands."""

    def cell(self, row: Mapping[str, Any]) -> str:
        """The figure as it is shown. Raises KeyError where it is missing and mustn't be."""
        value = row.get(self.key) if self.optional else at(row, self.key)
        interval = at(row, self.interval) if self.interval else None
        if interval is None:
            return figure(value, self.form)
        low, high = (self.scale * end for end in interval)
        return f"{figure(value, self.form)} ({low:{self.ends}}–{high:{self.ends}})"


def share(heading: str, key: str, interval: str | None = None) -> Figure:
    """A column of percentages."""
    return Figure(heading, key, ".1%", interval, scale=100)


@dataclass(frozen=True)
class Gap:
    """How a difference of two rows is written."""

    of: str
    """What they differ in."""
    form: str
    scale: float = 1
    unit: str = ""

    def cell(self, difference: Mapping[str, Any]) -> str:
        """The difference, with its interval where it has one."""
        value, low, high = (difference[key] for key in ("difference", "low", "high"))
        shown = f"{self.scale * value:{self.form}}{self.unit}"
        if low is None:
            return shown
        return f"{shown} ({self.scale * low:{self.form}} to {self.scale * high:{self.form}})"


def at(row: Mapping[str, Any], key: str) -> Any:
    """What stands in a row at a key, whose parts are joined by dots."""
    value: Any = row
    for part in key.split("."):
        value = value[part]
    return value
