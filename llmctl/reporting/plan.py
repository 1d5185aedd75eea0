"""The tables of ``llmctl plan``."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType

from llmctl.reporting.tables import values_table
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
        work = {
            "tokens": f"{plan['tokens']:,}",
            "n-grams, at most": f"{plan['parameters_at_most']:,}",
            "memory, at most": size(plan["memory_bytes_at_most"]),
            "time": duration(plan["expected_seconds"]),
            **_cost(plan),
        }
        return values_table(f"pretrain: {plan['shards']}", work, "right")
    parts = plan["parameters_by_part"]
    seconds, memory = plan["seconds_by_part"], plan["memory_by_kind"]
    compiled = "compiled" if plan["compiled"] else "not compiled"
    several = plan["processes"] > 1
    together = f", {plan['processes']} processes" if several else ""
    tokens = f"{count(plan['tokens'])} tokens, {plan['tokens_per_step']:,.0f} a step"
    work = {
        "on": f"{plan['device']}, {plan['precision']}, {compiled}{together}",
        "steps": f"{plan['total_steps']:,}",
        "tokens": tokens,
        "speed": f"{plan['tokens_per_second']:,.0f} tokens/s",
        "operations a token": f"{count(plan['flops_per_token'])}FLOP",
        "operations a step": f"{count(plan['flops_per_step'])}FLOP",
        "operations in all": f"{count(plan['flops'])}FLOP",
        "share of the machine's matrix rate": f"{plan['flops_utilisation']:.0%}",
        **_cost(plan),
    }
    times = {f"{name}{_times(name, plan)}": duration(value) for name, value in seconds.items()}
    each = " of each process" if several else ""
    tables = {
        f"{plan['stage']}: {plan.get('shards') or plan.get('data')}": work,
        f"time: {duration(plan['expected_seconds'])}": times | _others(plan),
        f"memory{each}: {size(plan['memory_bytes'])}": {
            MEMORY_NAMES.get(name, name): size(value) for name, value in memory.items()
        },
        f"parameters: {plan['parameters']:,}": {
            name: f"{value:,}" for name, value in parts.items()
        },
    }
    return Group(*(values_table(title, values, "right") for title, values in tables.items()))


def _others(plan: dict[str, Any]) -> dict[str, str]:
    """That others computed on the machine while it was timed, and what that may have cost."""
    rows = {}
    if "quiet_seconds_at_least" in plan:
        rows["on a quiet machine, at the least"] = duration(plan["quiet_seconds_at_least"])
    if "quiet_steps_at_most" in plan:
        rows["on a quiet machine, at the most"] = f"{plan['quiet_steps_at_most']:,} steps"
    return {"others used meanwhile": f"{plan['others_cores']:.1f} cores", **rows} if rows else {}


def _cost(plan: dict[str, Any]) -> dict[str, str]:
    if "cost" not in plan:
        return {}
    return {"cost": f"{plan['cost']:,.2f} at {plan['price_per_hour']:g} an hour"}


def _times(name: str, plan: dict[str, Any]) -> str:
    return f", {plan[name]:,}" if name in ("validations", "checkpoints") else ""
