"""A run: one training, from its first step to its model folder.

``manifest.json`` says what is trained, ``progress.json`` how far it is (rewritten in one step,
also the sign of life), ``metrics.jsonl`` holds a line for each logged step and is the only file
that grows. Whether the process lives is told by the writer's lock, never by a time.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmctl.errors import DivergedError, InputError
from llmctl.parsing import first_fault, read_json_object
from llmctl.workspace.artefacts import Artefact
from llmctl.workspace.files import errors_naming, to_json, write_atomic, write_json
from llmctl.workspace.locks import is_locked
from llmctl.workspace.metrics import metric_lines

RunState = Literal["running", "stalled", "interrupted", "failed", "finished"]

PROGRESS, METRICS = "progress.json", "metrics.jsonl"

STALLED_FLOOR_SECONDS = 60.0
"""A living run without a sign of life is not called stalled before this, whatever its speed."""
STALLED_STEPS = 20
"""A run isn't stalled before it has missed this many of its own steps."""


class RunRecorder:
    """Writes down a run while it is trained. The caller holds the writer's lock.

    What an earlier process wrote down stays until it is updated.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._progress: dict[str, Any] = {
            **read_progress(folder),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
        }

    def start(self, *, step: int, total_steps: int | None, validation_due: bool = False) -> None:
        """Begin after ``step``: records of what is done again, as it was lost in a crash, are
        dropped. validation_due: so is the validation at ``step`` itself."""
        path = self.folder / METRICS

        def is_done(record: dict[str, Any]) -> bool:
            at = record.get("step", 0)
            return at < step or (
                at == step and not (validation_due and record.get("kind") == "validation")
            )

        if path.exists():
            kept = (line for line, record in metric_lines(path) if is_done(record))
            write_atomic(path, b"".join(kept))
        self.update(state="running", step=step, total_steps=total_steps, message=None)

    def record(self, metrics: dict[str, Any]) -> None:
        """Append one line to the metrics log."""
        line = to_json(metrics) + "\n"
        path = self.folder / METRICS
        with errors_naming(path), path.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def update(self, **fields: Any) -> None:
        """Set fields of the progress and sign that the run is alive."""
        self._progress.update(fields, updated=time.time())
        # A sign of life is worth nothing after a power cut: no need to wait for the disk.
        write_json(self.folder / PROGRESS, self._progress, durable=False)


class SilentRecorder(RunRecorder):
    """The recorder of a process that trains with another, which does the writing."""

    def start(self, *, step: int, total_steps: int | None, validation_due: bool = False) -> None:
        """Nothing."""

    def record(self, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def update(self, **fields: Any) -> None:
        """Nothing."""


class _Progress(BaseModel):
    """What others go by in a progress; it may say more."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)

    state: str | None = None
    message: str | None = None
    step: int = Field(0, ge=0)
    total_steps: int | None = None
    share_done: float = Field(0.0, ge=0, le=1)
    elapsed: float = Field(0.0, ge=0)
    updated: float = 0.0
    seconds_per_step: float = Field(0.0, ge=0)
    exit_code: int | None = None


def read_progress(folder: Path) -> dict[str, Any]:
    """How far a run is; empty before its first sign of life. Of what can't be read there is a
    ``message``: the next sign of life writes it anew."""
    path = folder / PROGRESS
    if not os.path.lexists(path):
        return {}
    try:
        value = read_json_object(path)
        _Progress.model_validate(value)
    except InputError as error:
        return {"message": str(error)}
    except ValidationError as error:
        return {"message": f"{path} is damaged ({first_fault(error)})"}
    return value


def has_diverged(artefact: Artefact) -> bool:
    """Whether a run ended as its losses or gradients were not finite: it would again."""
    progress = read_progress(artefact.folder)
    code = progress.get("exit_code")
    return progress.get("state") == "failed" and code == DivergedError.exit_code


def run_state(artefact: Artefact, progress: dict[str, Any]) -> RunState:
    """The state of a run, by its manifest and its lock."""
    if artefact.finished:
        return "finished"
    if is_locked(artefact.folder):
        silence = time.time() - progress.get("updated", time.time())
        patience = STALLED_STEPS * progress.get("seconds_per_step", 0.0)
        return "stalled" if silence > max(STALLED_FLOOR_SECONDS, patience) else "running"
    return "failed" if progress.get("state") == "failed" else "interrupted"
