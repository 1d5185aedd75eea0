"""What ``--dry-run`` shows on a terminal: what would be done, what was asked for, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from llmctl.config import flat
from llmctl.reporting.fields import short_value
from llmctl.reporting.plan import render_plan
from llmctl.reporting.tables import as_json, shown, simple_table, values_table


def render_dry_run(document: Mapping[str, Any], asked: Mapping[str, Any]) -> RenderableType:
    """The document of a dry run as tables. asked: the fields that differ from their defaults, by
    dotted names."""
    told = {k: v for k, v in document.items() if k not in ("config", "plan", "points")}
    parts: list[RenderableType] = []
    if plan := document.get("plan"):
        # What is timed has tables of its own; the others look at data and names alone.
        timed = "expected_seconds" in plan
        parts.append(render_plan(plan) if timed else _facts("plan", plan))
    if told:
        parts.append(_facts("would do", told))
    if "points" in document:
        parts.append(_points(document["points"]))
    config = flat(document.get("config", {}))
    chosen = {key: as_json(config[key]) for key in asked if key in config}
    rest = {key: as_json(value) for key, value in config.items() if key not in chosen}
    for title, values in (
        ("asked for", chosen),
        ("by default, or chosen from the data and the machine", rest),
    ):
        if values:
            parts.append(values_table(title, values))
    return Group(*parts)


def _facts(title: str, values: Mapping[str, Any]) -> RenderableType:
    return values_table(title, {key: shown(value) for key, value in flat(values).items()})


def _points(points: list[dict[str, Any]]) -> RenderableType:
    """The runs of a sweep: what each is made with, and those of it that are there."""
    table = simple_table("points", [("name", "left"), ("with", "left"), ("there", "left")])
    for point in points:
        values = "  ".join(f"{key} {short_value(value)}" for key, value in point["values"].items())
        states = "  ".join(state for state in point["states"].values() if state)
        table.add_row(point["name"], values, states)
    return table
