"""Where a step's time goes: a trace of a few steps, and a table of its parts and operations."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from torch.profiler import profile, schedule, supported_activities

from llmctl.workspace.files import published_folder, write_json

SETTLING, STEPS = 5, 5
"""Steps before those that are traced, and those. More would make a trace that no viewer opens."""
SHOWN_OPERATIONS = 15
"""In the table."""
STEP_PARTS = ("batch", "forward", "backward", "clip", "update")
"""What the trainer names of a step."""
TRACE, TABLE = "trace.json", "table.json"


class StepProfiler:
    """Traces steps 6 to 10 of a training. ``trace.json`` opens in Perfetto (ui.perfetto.dev)."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        """folder: what to write. tell: takes the table."""
        self._folder, self._tell, self._steps = folder, tell, 0
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of its own starts and ends
        self._profile = profile(
            activities=supported_activities(),
            schedule=schedule(wait=SETTLING - 1, warmup=1, active=STEPS, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> Self:
        self._profile.start()
        return self

    def step(self) -> None:
        """After each step."""
        self._steps += 1
        self._profile.step()

    def __exit__(self, *_: object) -> None:
        """After the last step. Too short a training is told so."""
        self._profile.stop()
        if self._steps < SETTLING + STEPS:
            self._tell(
                f"--profile traces steps {SETTLING + 1} to {SETTLING + STEPS}, and {self._steps} "
                "were done: there is no trace"
            )

    def _write(self, profiled: profile) -> None:
        if self._steps < SETTLING + STEPS:  # a part of them, and the end of training
            return
        averages = {event.key: event for event in profiled.key_averages()}
        parts = [
            (name, averages[name].cpu_time_total, averages[name].count)
            for name in STEP_PARTS
            if name in averages
        ]
        total = sum(microseconds for _, microseconds, _ in parts)
        # Of an accelerator what it was busy with, else what the processor was.
        device = any(event.self_device_time_total for event in averages.values())
        busy = "self_device_time_total" if device else "self_cpu_time_total"
        operations = [
            (name, getattr(event, busy), event.count)
            for name, event in averages.items()
            if name not in STEP_PARTS and not name.startswith("ProfilerStep")
        ]
        operations.sort(key=lambda entry: -entry[1])
        rows = {
            kind: [
                {
                    "name": name,
                    "milliseconds": time / 1e3 / STEPS,
                    "share": time / total,
                    "calls": count / STEPS,
                }
                for name, time, count in entries
            ]
            for kind, entries in (("parts", parts), ("operations", operations[:SHOWN_OPERATIONS]))
        }
        with published_folder(self._folder) as folder:
            profiled.export_chrome_trace(str(folder / TRACE))
            write_json(folder / TABLE, rows)
        self._tell(render(rows, total / 1e3 / STEPS))
        self._tell(f"trace in {self._folder / TRACE}: open it at ui.perfetto.dev")


def render(rows: dict[str, list[dict[str, Any]]], milliseconds: float) -> str:
    """The table as lines of text. milliseconds: of a step."""
    lines = [f"a step takes {milliseconds:.1f} ms"]
    for kind, entries in rows.items():
        lines.append(f"{kind}:")
        for row in entries:
            time = f"{row['milliseconds']:>9.2f} ms {row['share']:>6.1%}"
            lines.append(f"  {row['name'][:44]:<44} {time} {row['calls']:>7.0f}×")
    return "\n".join(lines)
