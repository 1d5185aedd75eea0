"""Tables in the house's dress."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

JOINT = re.compile(r"(?<=[-._/])(?=[^-._/])")
"""Where a name may go on in a next line: behind what joins its parts."""

NAME_WIDTH = 16
"""Columns that a part of a name keeps where a terminal is narrow: the others wrap then."""
SHARE_OF_NAMES = 1 / 3
"""Share of a terminal's width that names take; a longer name takes two lines."""


class Name:
    """A name in a table. Where a terminal is narrow it breaks between its parts, as in
    ``zh-sentencepiece-`` and ``bpe``, never within one."""

    def __init__(self, name: str) -> None:
        self._parts = JOINT.split(name)

    @property
    def longest_part(self) -> int:
        """Its width on a terminal."""
        return max(map(cell_len, self._parts))

    def lines(self, width: int) -> list[str]:
        """The name in lines of so many columns, as far as its parts allow."""
        lines = [""]
        for part in self._parts:
            if lines[-1] and cell_len(lines[-1]) + cell_len(part) > width:
                lines.append("")
            lines[-1] += part
        return lines

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        whole = sum(map(cell_len, self._parts))
        if whole > options.max_width * SHARE_OF_NAMES:  # in two lines, about
            whole = max(map(cell_len, self.lines(-(-whole // 2))))
        return Measurement(self.longest_part, whole).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(options.max_width):
            yield Text(line, overflow="fold")


class NamedTable(Table):
    """A table whose cells below ``name`` are names."""

    def add_row(self, *cells: RenderableType | None, **options: object) -> None:
        """Add a row; see rich."""
        named = [
            Name(cell) if isinstance(cell, str) and column.header == "name" else cell
            for cell, column in zip(cells, self.columns, strict=False)
        ]
        for cell, column in zip(named, self.columns, strict=False):
            if isinstance(cell, Name):
                least = min(cell.longest_part, NAME_WIDTH)
                column.min_width = max(least, column.min_width or 0)
        super().add_row(*named, *cells[len(named) :], **options)  # type: ignore[arg-type]


def simple_table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    """A table without lines between its columns: (heading, ``left`` or ``right``)."""
    table = NamedTable(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
    )
    for heading, justify in columns:
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def values_table(title: str, values: dict[str, str], justify: str = "left") -> Table:
    """Names and what stands behind them, a line each."""
    table = simple_table(title, [("", "left"), ("", justify)])
    table.show_header = False
    table.columns[1].no_wrap = False
    for key, value in values.items():
        table.add_row(Text(key), Text(value))
    return table


def shown(value: Any) -> str:
    """A figure for people."""
    if isinstance(value, bool) or value is None:
        return as_json(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value if isinstance(value, str) else as_json(value)


def as_json(value: Any) -> str:
    """A value as configurations are written."""
    return json.dumps(value, ensure_ascii=False)
