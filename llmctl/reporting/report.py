"""What a report has to show, in order, and its look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table


@dataclass(frozen=True)
class ReportTable:
    """Named rows of figures that are written out already."""

    title: str
    headings: Sequence[str]
    """What stands above the figures; above the rows' names stands nothing."""
    rows: Sequence[Sequence[str]]
    """Each begins with its name."""


WHOLE_NAME = 16
"""Columns of a terminal up to which a row's name is never broken."""
ReportPart = ReportTable | str
"""A table, or a line below or between tables."""


def render_report(parts: Iterable[ReportPart]) -> RenderableType:
    """A report as ``llmctl eval`` prints it."""
    return Group(*(part if isinstance(part, str) else _table(part) for part in parts))


def _table(table: ReportTable) -> RenderableType:
    shown = Table(box=box.SIMPLE_HEAD, title=table.title, padding=(0, 1, 0, 0))
    # Where a terminal is narrow, cells wrap between their words, and names of rows stay whole.
    names = max((cell_len(row[0]) for row in table.rows), default=0)
    shown.add_column("", min_width=min(names, WHOLE_NAME))
    for heading in table.headings:
        shown.add_column(heading, justify="right", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    return shown
