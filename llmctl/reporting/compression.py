"""The table that every compression ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from llmctl.reporting.plot import Series, glyph, plot
from llmctl.reporting.report import ReportTable, render_report
from llmctl.reporting.units import size

PLOT_WIDTH, PLOT_HEIGHT, MARGIN = 100, 12, 12
"""Columns and rows of a plot at most, and columns of its labels."""


def render_compression(table: Mapping[str, Any]) -> RenderableType:
    """Sizes, speeds and quality of the compressed model, a simpler method's and the start."""
    rows = table["rows"]
    costs = ReportTable(
        f"{table['name']}: sizes and speeds",
        ["weights", "on disk", "in memory", "ms, batch 1", "batch 32", "tokens/s"],
        [_costs(row) for row in rows],
    )
    quality = ReportTable(
        f"{table['name']} on {table['data']}",
        [f"{table['quality']} (95 %)", "lost (95 %)"],
        [[row["name"], _quality(row), _lost(row)] for row in rows],
    )
    return render_report([costs, quality, *(f"note: {note}" for note in table["notes"])])


def _costs(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        row["dtype"],
        size(row["bytes_on_disk"]),
        size(row["bytes_in_memory"]),
        f"{1000 * row['latency_1']:.2f}",
        f"{1000 * row['latency_32']:.2f}",
        f"{row['tokens_per_second']:,.0f}",
    ]


def _quality(row: Mapping[str, Any]) -> str:
    if row["interval"] is None:
        return f"{row['quality']:.4f}"
    low, high = row["interval"]
    return f"{row['quality']:.4f} ({low:.4f}–{high:.4f})"


def _lost(row: Mapping[str, Any]) -> str:
    if row["lost"] is None:
        return ""
    if row["lost_interval"] is None:
        return f"{row['lost']:+.4f}"
    low, high = row["lost_interval"]
    return f"{row['lost']:+.4f} ({low:+.4f} to {high:+.4f})"


def render_sizes(document: Mapping[str, Any], width: int) -> RenderableType:
    """Quality over size, a mark for each run, and which is which."""
    runs = document["runs"]
    series = [Series(run["name"], [(run["bytes_on_disk"], run["quality"])]) for run in runs]
    better = "lower" if document["lower_is_better"] else "higher"
    drawn = plot(
        series, width=min(width, PLOT_WIDTH) - MARGIN, height=PLOT_HEIGHT, label="{:.4f}".format,
        x_label=size,
    )  # fmt: skip
    table = ReportTable(
        f"{document['quality']} on {document['data']} over size on disk; {better} is better",
        ["on disk", document["quality"]],
        [
            [f"{glyph(number)} {run['name']}", size(run["bytes_on_disk"]), _quality(run)]
            for number, run in enumerate(runs)
        ],
    )
    return Group(drawn, render_report([table]))
