"""The tables and curves of ``llmctl status --compare``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmctl.reporting.fields import short_value
from llmctl.reporting.plot import Series, colour, glyph, plot
from llmctl.reporting.tables import simple_table
from llmctl.reporting.units import count, duration, figure

HEIGHT = 13
WIDEST = 100
LABELS = 30
"""Columns of a table for the names of its rows."""
AXIS = 10
"""Columns beside a plot for the labels of its axis."""
MAX_FIXED_DIGITS = 1e9
"""Above it a figure is no loss that a table can show in fixed digits."""


def render_compare(document: dict[str, Any], width: int) -> RenderableType:
    """Runs beside one another, on a terminal of ``width`` columns."""
    names = [run["name"] for run in document["runs"]]
    key = [f"{glyph(number)} {name}" for number, name in enumerate(names)]
    # Names that don't fit over their columns stand above all, and their glyphs over the columns.
    fits = LABELS + sum(len(words) + 2 for words in key) <= width
    parts: list[RenderableType] = []
    if not fits:
        parts += [Text(words, style=colour(number)) for number, words in enumerate(key)]
        parts.append(Text(""))
    heads = key if fits else [glyph(number) for number in range(len(names))]
    parts += [_figures(document, heads), _differences(document, heads)]
    for kind in ("validation", "train"):
        parts += _curves(document, kind, min(width - AXIS, WIDEST), named=fits)
    if document["caution"]:
        parts.append(Text(f"caution: {document['caution']}", style="yellow"))
    return Group(*parts)


def _table(title: str, heads: Sequence[str]) -> Table:
    """A column for each run, whose long values take several lines."""
    table = simple_table(title, [("", "left"), *((head, "right") for head in heads)])
    for column in table.columns[1:]:
        column.no_wrap = False
    return table


def _figures(document: dict[str, Any], heads: Sequence[str]) -> RenderableType:
    runs = document["runs"]
    table = _table("runs", heads)
    rows: dict[str, list[str]] = {
        "state": [run["state"] for run in runs],
        "steps": [
            f"{run['step']:,}" + (f" / {run['total_steps']:,}" if run["total_steps"] else "")
            for run in runs
        ],
        "tokens": [count(run["tokens"]) if run["tokens"] is not None else "–" for run in runs],
        "parameters": [
            count(run["parameters"]) if run["parameters"] is not None else "–" for run in runs
        ],
        "time": [duration(run["seconds"]) for run in runs],
        "tokens/s": [figure(run["tokens_per_second"], ",.0f") for run in runs],
        "train loss": [figure(run["train_loss"], ".4f") for run in runs],
        "validation loss": [figure(run["validation_loss"], ".4f") for run in runs],
        "best validation": [_best(run) for run in runs],
    }
    others = dict.fromkeys(key for run in runs for key in run["validation"])
    for key in others:
        values = [run["validation"].get(key) for run in runs]
        if values == [run["validation_loss"] for run in runs]:
            continue  # the loss by another name
        if all(value is None or isinstance(value, int | float) for value in values):
            rows[key.replace("_", " ")] = [figure(value, ".4f") for value in values]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _best(run: dict[str, Any]) -> str:
    if run["best_validation_loss"] is None:
        return "–"
    return f"{figure(run['best_validation_loss'], '.4f')} at step {run['best_step']:,}"


def _differences(document: dict[str, Any], heads: Sequence[str]) -> RenderableType:
    if not document["differences"]:
        return Text("their configurations are the same\n")
    table = _table("differences", heads)
    for difference in document["differences"]:
        values = difference["values"]
        cells = [
            short_value(values[run["name"]]) if run["name"] in values else "–"
            for run in document["runs"]
        ]
        table.add_row(difference["field"], *cells)
    return table


def _curves(
    document: dict[str, Any], kind: str, width: int, *, named: bool
) -> list[RenderableType]:
    series = [Series(curve["name"], curve[kind]) for curve in document["curves"]]
    legend = Text(f"{kind} loss by {document['x']}{':' * named}", style="bold")
    for number, one in enumerate(series if named else ()):
        legend.append(f"  {glyph(number)} {one.label}", style=f"not bold {colour(number)}")
    drawn = plot(series, width=max(width, 20), height=HEIGHT, label=_loss, x_label=count)
    return [legend, drawn, Text("")]


def _loss(value: float) -> str:
    if not math.isfinite(value) or abs(value) >= MAX_FIXED_DIGITS:
        return f"{value:.2g}"
    return f"{value:.4g}"
