"""The table of ``llmctl sweep``."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llmctl.reporting.fields import short_fields, short_value
from llmctl.reporting.tables import simple_table
from llmctl.reporting.units import duration, figure

EXTRA = (("accuracy", ".1%"), ("bits_per_byte", ".4f"))
"""Figures of a validation that are shown beside its loss."""


def render_sweep(document: dict[str, Any]) -> RenderableType:
    """The points, the best first, and which it is."""
    lines = document["points"]
    heads = short_fields(document["fields"])
    several = len(lines[0]["runs"]) > 1 and document["judged_by"] != "criterion"
    extra = [(key, form) for key, form in EXTRA if any(key in line["validation"] for line in lines)]
    table = simple_table(
        f"{document['name']}: {document['stage']}, by {document['judged_by']}",
        [
            *((heads[field], "right") for field in document["fields"]),
            ("loss (sd)" if several else "loss", "right"),
            *((key.replace("_", " "), "right") for key, _ in extra),
            ("steps", "right"),
            ("time", "right"),
            ("state", "left"),
            ("name", "left"),
        ],
    )
    for line in lines:
        look = line["validation"]
        loss = figure(look.get("loss"), ".4f")
        if several and "deviation" in line:
            loss += f" ({figure(line['deviation'], '.4f')})"
        best = line["runs"] and document["best"] in [run["name"] for run in line["runs"]]
        table.add_row(
            *(short_value(line["values"][field]) for field in document["fields"]),
            loss,
            *(figure(look.get(key), form) for key, form in extra),
            f"{line['steps']:,}" if line["steps"] else "–",
            duration(line["seconds"]) if line["seconds"] else "–",
            line["state"],
            min(line["runs"], key=_score)["name"],
            style="bold" if best else "",
        )
    return Group(table, *_rungs(document), _best(document))


def _score(run: dict[str, Any]) -> float:
    return float(run["score"])


def _rungs(document: dict[str, Any]) -> list[Text]:
    shown = []
    for number, rung in enumerate(document.get("rungs", []), 1):
        budget = ", ".join(f"{key} {short_value(value)}" for key, value in rung["budget"].items())
        shown.append(Text(f"rung {number}: {budget}: kept {len(rung['kept'])} of {rung['points']}"))
    return shown


def _best(document: dict[str, Any]) -> Text:
    if document["best"] is None:
        return Text("no validation loss to tell the best by: nothing was held out", style="yellow")
    line = document["points"][0]
    heads = short_fields(document["fields"])
    values = ", ".join(
        f"{heads[key]}={short_value(value)}" for key, value in line["values"].items()
    )
    return Text(f"best: {document['best']} ({values})", style="bold")
