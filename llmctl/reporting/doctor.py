"""The page of ``llmctl doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmctl.reporting.units import count, size


def render_doctor(facts: Mapping[str, Any]) -> RenderableType:
    """What was found, then what is wrong, a sentence a line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(facts):
        table.add_row(name, Text(value))
    wrong = [Text(f"broken: {text}", style="red") for text in facts["broken"]]
    wrong += [Text(f"note: {text}", style="yellow") for text in facts["warnings"]]
    if not facts["broken"]:
        wrong.append(Text("Everything that llmctl needs is there.", style="green"))
    return Group(table, Text(), *wrong)


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions, processor, threads = facts["versions"], facts["processor"], facts["threads"]
    memory, workspace, text = facts["memory"], facts["workspace"], facts["text"]
    rates = facts["matrix_rates"]
    cores = f"{processor['cores']}"
    if processor["cores"] != processor["cores_of_machine"]:
        cores += f" of {processor['cores_of_machine']}"
    limit = memory["limit_bytes"]
    rows = [
        ("llmctl", f"{versions['llmctl']} on Python {versions['python']}, {versions['system']}"),
        ("packages", _named(versions["needed"])),
        ("optional", _named(versions["optional"])),
        (
            "processor",
            f"{processor['name']}: {cores} cores, {', '.join(processor['instructions']) or '–'}",
        ),
        (
            "threads",
            f"{threads['compute']}; they wait {threads['waiting']}; others use "
            f"{threads['others_cores']:.1f} cores",
        ),
        (
            "matrix products",
            ", ".join(f"{name} {count(rate)}FLOP/s" for name, rate in rates["cpu"].items())
            + f": training.precision auto takes {rates['precision']}",
        ),
        ("compiler", processor["compiler"] or "none"),
    ]
    for gpu in facts["gpus"]:
        room = f", {size(gpu['free_bytes'])} free of {size(gpu['memory_bytes'])}"
        rate = f", bf16 {count(gpu['bf16'])}FLOP/s" if "bf16" in gpu else ""
        rows.append(("GPU", gpu["name"] + (room if "free_bytes" in gpu else "") + rate))
    rows += [
        (
            "memory",
            f"{_size(memory['free_bytes'])} free of {_size(limit or memory['machine_bytes'])}"
            f"{', the limit of this container' if limit else ''}; "
            f"/dev/shm {_size(memory['shared_free_bytes'])} free",
        ),
        ("workspace", f"{workspace['folder']}{'' if workspace['exists'] else ' (not there yet)'}"),
    ]
    if "written_bytes_per_second" in workspace:
        rows.append(
            (
                "its disk",
                f"{size(workspace['free_bytes'])} free; writes "
                f"{size(workspace['written_bytes_per_second'])}/s, "
                f"{workspace['flushes_per_second']:,.0f} flushes/s; locks "
                f"{'work' if workspace['locks'] else 'do not work'}",
            )
        )
    rows.append(
        ("text", f"{text['terminal']} on the terminal, {text['files']} in files, {text['locale']}")
    )
    return rows


def _named(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'absent'}" for name, version in versions.items())


def _size(number: float | None) -> str:
    return "?" if number is None else size(number)
