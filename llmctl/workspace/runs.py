"""A run: one training, from its first step to its model folder.

``manifest.json`` says what is trained, ``progress.json`` how far it is (rewritten in one step,
also the sign of life), ``metrics.jsonl`` holds a line for each logged step and is the only file
that grows. Whether the process lives is told by the writer's lock, never by a time.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from pathlib import Path
from typing import Any, Literal

from llmctl.errors import DivergedError, InputError
from llmctl.parsing import Malformed, parse_json, read_json
from llmctl.workspace.artefacts import Artefact
from llmctl.workspace.files import errors_naming, write_atomic, write_json
from llmctl.workspace.locks import is_locked
from llmctl.workspace.manifests import InputRecord, Manifest

State = Literal["running", "stalled", "interrupted", "failed", "finished"]

STALLED_FLOOR_SECONDS = 60.0
"""A living run without a sign of life is not called stalled before this, whatever its speed."""
STALLED_STEPS = 20
"""… nor before it has missed this many of its own steps."""


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

    def start(self, *, step: int, total_steps: int | None, look_due: bool = False) -> None:
        """Begin after ``step``: records of what is done again, as it was lost in a crash, are
        dropped. look_due: so is the validation at ``step`` itself."""
        path = self.folder / "metrics.jsonl"

        def is_done(record: dict[str, Any]) -> bool:
            at = record.get("step", 0)
            return at < step or (
                at == step and not (look_due and record.get("kind") == "validation")
            )

        if path.exists():
            kept = [json.dumps(record) for record in read_metrics(path) if is_done(record)]
            write_atomic(path, "".join(line + "\n" for line in kept))
        self.update(state="running", step=step, total_steps=total_steps, message=None)

    def record(self, metrics: dict[str, Any]) -> None:
        """Append one line to the metrics log."""
        line = json.dumps(metrics) + "\n"
        path = self.folder / "metrics.jsonl"
        with errors_naming(path), path.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def update(self, **fields: Any) -> None:
        """Set fields of the progress and sign that the run is alive."""
        self._progress.update(fields, updated=time.time())
        # A sign of life is worth nothing after a power cut: no need to wait for the disk.
        write_json(self.folder / "progress.json", self._progress, durable=False)


class SilentRecorder(RunRecorder):
    """Of a process that trains with another, which does the writing."""

    def start(self, *, step: int, total_steps: int | None, look_due: bool = False) -> None:
        """Nothing."""

    def record(self, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def update(self, **fields: Any) -> None:
        """Nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics log; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except Malformed:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines) - 1:
            raise InputError(
                f"{path}:{number} is no JSON object; remove that line, or begin again with --force"
            )
    return records


def read_progress(folder: Path) -> dict[str, Any]:
    """How far a run is; empty before its first sign of life, and if it can't be read: the next
    sign of life writes it anew."""
    path = folder / "progress.json"
    try:
        value = read_json(path) if path.exists() else {}
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def resume_command(manifest: Manifest) -> str:
    """The command that goes on with a run, from any folder.

    What the command left to be chosen (newest shards, a name) is written out, as the choice
    could be another by now. Without --force, which would start the run anew.
    """
    words = [word for word in manifest.command if word != "--force"]
    chosen = {"--name": manifest.name}
    of_role = {record.role: record for record in manifest.inputs}
    if manifest.stage == "pretrain" and "shards" in of_role:
        chosen["--shards"] = _given_as(of_role["shards"])
    if manifest.config.get("from") == "scratch" and "model" in of_role:
        chosen["--like"] = _given_as(of_role["model"])
    for option, value in chosen.items():
        if not any(word == option or word.startswith(f"{option}=") for word in words):
            words += [option, value]
    command = shlex.join(words)
    if manifest.directory and Path(manifest.directory) != Path.cwd():
        return f"cd {shlex.quote(manifest.directory)} && {command}"
    return command


def _given_as(record: InputRecord) -> str:
    """What an option takes for an input: an artefact's name, or a path."""
    return record.artefact[1] if record.artefact else record.name


def has_diverged(artefact: Artefact) -> bool:
    """Whether a run ended as its losses or gradients were not finite: it would again."""
    progress = read_progress(artefact.folder)
    code = progress.get("exit_code")
    return progress.get("state") == "failed" and code == DivergedError.exit_code


def run_state(artefact: Artefact, progress: dict[str, Any]) -> State:
    """The state of a run, by its manifest and its lock."""
    if artefact.finished:
        return "finished"
    if is_locked(artefact.folder):
        silence = time.time() - progress.get("updated", time.time())
        patience = STALLED_STEPS * progress.get("seconds_per_step", 0.0)
        return "stalled" if silence > max(STALLED_FLOOR_SECONDS, patience) else "running"
    return "failed" if progress.get("state") == "failed" else "interrupted"
