"""The tables of ``llmctl plan``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmctl.reporting.units import count, duration, size

MEMORY_NAMES = {
    "process": "Python and libraries",
    "logits": "logits, a few rows at a time",
    "optimiser": "optimiser's state",
    "rest": "results on the way, buffers",
    "fragments": "freed, in pieces too small",
    "shards": "shards, as far as read",
}


def render_plan(plan: dict[str, Any]) -> RenderableType:
    """A plan: what is trained, then time, memory and parameters."""
    if "parameters_by_part" not in plan:  # n-grams are counted, not trained
        work = [
            ("tokens", f"{plan['tokens']:,}"),
            ("n-grams, at most", f"{plan['parameters_at_most']:,}"),
            ("memory, at most", size(plan["memory_bytes_at_most"])),
            ("time", duration(plan["expected_seconds"])),
            *_cost(plan),
        ]
        return _table(f"pretrain: {plan['shards']}", work)
    parts = plan["parameters_by_part"]
    seconds, memory = plan["seconds_by_part"], plan["memory_by_kind"]
    compiled = "compiled" if plan["compiled"] else "not compiled"
    several = plan["processes"] > 1
    together = f", {plan['processes']} processes" if several else ""
    tokens = f"{count(plan['tokens'])} tokens, {plan['tokens_per_step']:,.0f} a step"
    work = [
        ("on", f"{plan['device']}, {plan['precision']}, {compiled}{together}"),
        ("steps", f"{plan['total_steps']:,}"),
        ("tokens", tokens),
        ("speed", f"{plan['tokens_per_second']:,.0f} tokens/s"),
        ("operations a token", f"{count(plan['flops_per_token'])}FLOP"),
        ("operations a step", f"{count(plan['flops_per_step'])}FLOP"),
        ("operations in all", f"{count(plan['flops'])}FLOP"),
        ("share of the machine's matrix rate", f"{plan['flops_utilisation']:.0%}"),
        *_cost(plan),
    ]
    tables = [
        _table(f"{plan['stage']}: {plan.get('shards') or plan.get('data')}", work),
        _table(
            f"time: {duration(plan['expected_seconds'])}",
            [
                *(
                    (f"{name}{_times(name, plan)}", duration(value))
                    for name, value in seconds.items()
                ),
                *_others(plan),
            ],
        ),
        _table(
            f"memory{' of each process' if several else ''}: {size(plan['memory_bytes'])}",
            ((MEMORY_NAMES.get(name, name), size(value)) for name, value in memory.items()),
        ),
        _table(
            f"parameters: {plan['parameters']:,}",
            ((name, f"{value:,}") for name, value in parts.items()),
        ),
    ]
    return Group(*tables)


def _others(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """That others computed on the machine while it was timed, and what that may have cost."""
    rows = []
    if "quiet_seconds_at_least" in plan:
        least = duration(plan["quiet_seconds_at_least"])
        rows.append(("on a quiet machine, at the least", least))
    if "quiet_steps_at_most" in plan:
        most = f"{plan['quiet_steps_at_most']:,} steps"
        rows.append(("on a quiet machine, at the most", most))
    if rows:
        rows.insert(0, ("others used meanwhile", f"{plan['others_cores']:.1f} cores"))
    return rows


def _cost(plan: dict[str, Any]) -> list[tuple[str, str]]:
    if "cost" not in plan:
        return []
    return [("cost", f"{plan['cost']:,.2f} at {plan['price_per_hour']:g} an hour")]


def _times(name: str, plan: dict[str, Any]) -> str:
    return f", {plan[name]:,}" if name in ("validations", "checkpoints") else ""


def _table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", title_style="bold",
        show_header=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
