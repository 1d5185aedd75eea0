"""Tables in the house's dress."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

NAME_WIDTH = 12
"""Characters that a name keeps in a line where a terminal is narrow: the others wrap then."""


def simple_table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    """A table without lines between its columns: (heading, ``left`` or ``right``)."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
    )
    for heading, justify in columns:
        table.add_column(
            heading,
            justify=justify,  # type: ignore[arg-type]
            min_width=NAME_WIDTH if heading == "name" else None,
            overflow="fold",
        )
    return table
