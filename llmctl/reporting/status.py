"""The tables of ``llmctl status``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from llmctl.config import flat
from llmctl.reporting.sparkline import sparkline
from llmctl.reporting.tables import as_json, shown, simple_table, values_table
from llmctl.reporting.units import age, count, duration, figure, size

STATE_STYLES = {
    "running": "green",
    "finished": "bold",
    "interrupted": "yellow",
    "stalled": "yellow",
    "failed": "red",
}
BAR, CURVE = 8, 16
WIDE_ENOUGH = 110
"""Columns of a terminal that hold every column of the table of runs."""


def render_overview(document: dict[str, Any], width: int = WIDE_ENOUGH) -> RenderableType:
    """Every artefact in short, on a terminal of ``width`` columns."""
    tables: dict[str, Callable[[Sequence[dict[str, Any]]], Table]] = {
        "tokenizers": _tokenizers,
        "shards": _shards,
        "runs": partial(_runs, width=width),
        "reports": _reports,
        "damaged": _damaged,
    }
    parts: list[RenderableType] = [
        table(document[kind]) for kind, table in tables.items() if document[kind]
    ]
    if kept := _kept_checkpoints(document["runs"]):
        parts.append(Text(kept))
    if not parts:
        parts.append(Text(f"{document['workspace']} is empty; begin with: llmctl tokenize FILE …"))
    return Group(*parts)


def render_newest(document: dict[str, Any], width: int, height: int) -> RenderableType:
    """What goes on, on a terminal that is watched and has ``height`` lines: where not everything
    finds room, the runs alone; of these the ones that are alive and the newest, and how many
    are left out."""
    runs = document["runs"]
    others = sum(len(document[kind]) for kind in ("tokenizers", "shards", "reports", "damaged"))
    tables = sum(bool(document[kind]) for kind in _KINDS)
    if len(runs) + others + tables * TABLE_LINES < height:
        return render_overview(document, width)
    room = max(1, height - TABLE_LINES - 1)
    alive = [run["state"] in ("running", "stalled") for run in runs]
    # The sort is stable: those alive behind the others, of equals the newest last.
    by_weight = sorted(range(len(runs)), key=lambda number: alive[number])
    shown = [runs[number] for number in sorted(by_weight[-room:])]
    left_out = (
        f"{len(runs) - len(shown):,} older runs and {others:,} other artefacts: llmctl status"
    )
    return Group(_runs(shown, width), Text(left_out))


_KINDS = ("tokenizers", "shards", "runs", "reports", "damaged")
TABLE_LINES = 5
"""Lines of a table besides its rows."""


def _kept_checkpoints(runs: Sequence[dict[str, Any]]) -> str:
    """A sentence about the room that checkpoints of finished runs take, or nothing."""
    total = sum(run["checkpoint_bytes"] for run in runs if run["state"] == "finished")
    return (
        f"checkpoints of finished runs: {size(total)}; llmctl prune removes them" if total else ""
    )


def _tokenizers(entries: Sequence[dict[str, Any]]) -> Table:
    columns = [
        ("name", "left"), ("kind", "left"), ("pieces", "right"), ("size", "right"),
        ("age", "right"),
    ]  # fmt: skip
    table = simple_table("tokenizers", columns)
    for entry in entries:
        table.add_row(
            entry["name"],
            entry["kind"],
            f"{entry['vocab_size']:,}",
            size(entry["bytes"]),
            age(entry["age_seconds"]),
        )
    return table


def _damaged(entries: Sequence[dict[str, str]]) -> Table:
    table = simple_table("damaged", [("name", "left"), ("kind", "left"), ("what", "left")])
    table.columns[2].no_wrap = False
    for entry in entries:
        what = Text(f"damaged: {entry['message']}", style=STATE_STYLES["failed"])
        table.add_row(entry["name"], entry["kind"], what)
    return table


def _shards(entries: Sequence[dict[str, Any]]) -> Table:
    table = simple_table(
        "shards",
        [
            ("name", "left"), ("tokenizer", "left"), ("documents", "right"), ("tokens", "right"),
            ("held out", "right"), ("size", "right"), ("age", "right"),
        ],
    )  # fmt: skip
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['tokenizer']} {entry['vocab_size']:,}",
            f"{entry['documents']:,}",
            count(entry["tokens"]),
            count(entry["validation_tokens"]),
            size(entry["bytes"]),
            age(entry["age_seconds"]),
        )
    return table


def _runs(entries: Sequence[dict[str, Any]], width: int) -> Table:
    columns = [
        ("name", "left"), ("state", "left"), ("step", "right"), ("progress", "left"),
        ("left", "right"), ("loss", "right"), ("curve", "left"), ("tokens/s", "right"),
        ("size", "right"), ("age", "right"),
    ]  # fmt: skip
    # The curve and the bar are the first to go where there is little room.
    spare = {"curve", "progress"} if width < WIDE_ENOUGH else set()
    table = simple_table("runs", [column for column in columns if column[0] not in spare])
    for entry in entries:
        left = entry["eta_seconds"]
        speed = entry["tokens_per_second"]
        cells = {
            "name": entry["name"],
            "state": _state(entry["state"]),
            "step": _steps(entry),
            "progress": _bar(entry["progress"]),
            "left": duration(left) if left is not None else "",
            "loss": figure(entry["loss"], ".3f") if entry["losses"] else "",
            "curve": sparkline(entry["losses"], CURVE),
            "tokens/s": f"{speed:,.0f}" if speed else "",
            "size": size(entry["bytes"]),
            "age": age(entry["age_seconds"]),
        }
        table.add_row(*(cell for name, cell in cells.items() if name not in spare))
    return table


def _reports(entries: Sequence[dict[str, Any]]) -> Table:
    table = simple_table(
        "reports", [("name", "left"), ("figures", "left"), ("size", "right"), ("age", "right")]
    )
    table.columns[1].no_wrap = False
    for entry in entries:
        figures = "  ".join(
            f"{name} {value:.4g}" for name, value in entry.items()
            if isinstance(value, float) and name not in ("age_seconds",)
        )  # fmt: skip
        table.add_row(entry["name"], figures, size(entry["bytes"]), age(entry["age_seconds"]))
    return table


def _state(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def _steps(entry: dict[str, Any]) -> str:
    total = entry["total_steps"]
    return f"{entry['step']:,} / {total:,}" if total else f"{entry['step']:,}"


def _bar(share: float) -> str:
    full = round(share * BAR)
    return "━" * full + "╌" * (BAR - full) + f" {share:4.0%}"


def render_detail(document: dict[str, Any]) -> RenderableType:
    """One artefact in full."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(document["kind"], document["name"])
    run = document.get("run")
    if run:
        state = _state(run["state"])
        if run["message"]:
            state.append(f": {run['message']}")
        table.add_row("state", state)
        table.add_row("step", f"{_steps(run)}  {_bar(run['progress'])}")
        if run["eta_seconds"] is not None:
            table.add_row("time left", duration(run["eta_seconds"]))
        table.add_row("time spent", duration(run["elapsed_seconds"]))
        if run["losses"]:
            curve = sparkline(run["losses"], 40)
            table.add_row("loss", f"{figure(run['loss'], '.4f')}  {curve}")
        if rewards := run.get("rewards"):
            table.add_row("reward", f"{figure(rewards[-1], '.4f')}  {sparkline(rewards, 40)}")
        if run["tokens_per_second"]:
            share = run["utilisation"]
            of_machine = f", {share:.0%} of the machine's matrix rate" if share else ""
            table.add_row("speed", f"{run['tokens_per_second']:,.0f} tokens/s{of_machine}")
        if run["memory_bytes"]:
            table.add_row("peak memory", size(run["memory_bytes"]))
        if document["validations"]:
            last = document["validations"][-1]
            figures = "  ".join(
                f"{k} {figure(v, '.4f')}"
                for k, v in last.items()
                if v is None or isinstance(v, float)
            )
            table.add_row("validation", f"step {last['step']}: {figures}")
        if document["checkpoints"]:
            names = ", ".join(document["checkpoints"])
            table.add_row("checkpoints", f"{names}  ({size(run['checkpoint_bytes'])})")
    table.add_row("folder", f"{document['folder']}  ({size(document['bytes'])})")
    if document.get("log"):
        table.add_row("log", document["log"])
    table.add_row("made by", Text(document["command"]))
    if document.get("resume"):
        table.add_row("go on with", Text(document["resume"]))
    versions = "  ".join(f"{k} {v}" for k, v in document["versions"].items() if v)
    table.add_row("versions", versions)
    for event in ("created", "finished"):
        if document[event]:
            moment = datetime.fromisoformat(document[event])
            table.add_row(event, moment.isoformat(timespec="seconds"))
    return Group(table, _lineage(document), *_figures(document["summary"]), *_config(document))


def _lineage(document: dict[str, Any]) -> Tree:
    tree = Tree(Text("made from", style="bold"))
    branches = {0: tree}
    for entry in document["lineage"]:
        missing = "  (not here)" if entry["present"] is False else ""
        label = Text(f"{entry['role']}: {entry['name']}  {entry['digest'][:12]}{missing}")
        branches[entry["depth"]] = branches[entry["depth"] - 1].add(label)
    return tree


def _figures(summary: dict[str, Any]) -> list[RenderableType]:
    """What a stage has to say of what it made, a line for each."""
    if not summary:
        return []
    return [values_table("figures", {key: shown(value) for key, value in flat(summary).items()})]


def _config(document: dict[str, Any]) -> list[RenderableType]:
    """What was asked for, and everything else as the defaults, or the stage, had it."""
    chosen, config = document["given"], flat(document["config"])
    if chosen is None:  # by an earlier version, which kept no record of it
        return [
            values_table("configuration", {key: as_json(value) for key, value in config.items()})
        ]
    rest = {key: as_json(value) for key, value in config.items() if key not in chosen}
    asked = {key: as_json(config.get(key, value)) for key, value in chosen.items()}
    return [
        values_table("asked for", asked),
        values_table("by default, or chosen from the data and the machine", rest),
    ]
