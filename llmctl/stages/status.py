"""Status: what the workspace holds and how far its runs are, as JSON values."""

from __future__ import annotations

import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from llmctl.errors import InputError, did_you_mean
from llmctl.workspace.artefacts import FOLDERS, Artefact, Kind, Workspace
from llmctl.workspace.runs import read_metrics, read_progress, run_state

SCHEMA_VERSION = 1
"""Of the documents that ``llmctl status --json`` prints; raised when a field changes meaning."""


def overview(workspace: Workspace) -> dict[str, Any]:
    """Every artefact in short, the newest last."""
    return {
        "schema_version": SCHEMA_VERSION,
        "workspace": str(workspace.root),
        "tokenizers": [_short(artefact) for artefact in workspace.list("tokenizer")],
        "shards": [_short(artefact) for artefact in workspace.list("shards")],
        "runs": [run_line(artefact) for artefact in workspace.list("run")],
        "reports": [_short(artefact) for artefact in workspace.list("report")],
    }


def run_line(artefact: Artefact) -> dict[str, Any]:
    """A run in short: state, progress, expected time left, losses, speed."""
    manifest = artefact.manifest
    progress = read_progress(artefact.folder)
    metrics = read_metrics(artefact.folder / "metrics.jsonl")
    trained = [record for record in metrics if record["kind"] == "train"]
    looks = [record for record in metrics if record["kind"] == "validation"]
    state = run_state(artefact, progress)
    share = float(progress.get("share_done", 0.0))
    elapsed = float(progress.get("elapsed", 0.0))
    running = state in ("running", "stalled")
    return {
        "name": manifest.name,
        "stage": manifest.stage,
        "state": state,
        "message": progress.get("message"),
        "step": progress.get("step", 0),
        "total_steps": progress.get("total_steps"),
        "progress": share,
        "eta_seconds": elapsed * (1 - share) / share if running and share > 0 else None,
        "elapsed_seconds": elapsed,
        "loss": trained[-1]["loss"] if trained else None,
        "validation_loss": looks[-1]["loss"] if looks else None,
        "losses": [record["loss"] for record in trained],
        "tokens_per_second": trained[-1]["tokens_per_second"] if trained else None,
        "age_seconds": max(0.0, time.time() - progress.get("updated", _seconds(manifest.created))),
        "created": manifest.created,
        "finished": manifest.finished,
        "parameters": manifest.summary.get("parameters"),
    }


def detail(workspace: Workspace, name: str) -> dict[str, Any]:
    """One artefact in full: how it was made, from what, and how to go on with it.

    Raises InputError if no artefact of any kind has the name.
    """
    artefact = find(workspace, name)
    manifest = artefact.manifest
    lineage = [
        {
            "depth": depth,
            "role": record.role,
            "name": record.name,
            "digest": record.digest,
            "present": parent is not None or Path(record.name).exists(),
        }
        for depth, record, parent in workspace.lineage(manifest)
    ]
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": manifest.kind,
        "name": manifest.name,
        "folder": str(artefact.folder),
        "command": shlex.join(manifest.command),
        "directory": manifest.directory,
        "config": manifest.config,
        "seed": manifest.seed,
        "summary": manifest.summary,
        "lineage": lineage,
        "files": {name: record.model_dump() for name, record in manifest.files.items()},
        "versions": {
            "llmctl": manifest.llmctl_version,
            "torch": manifest.torch_version,
            "python": manifest.python_version,
        },
        "created": manifest.created,
        "finished": manifest.finished,
    }
    if manifest.kind == "run":
        document["run"] = run_line(artefact)
        document["resume"] = None if artefact.finished else resume_command(artefact)
        document["checkpoints"] = sorted(
            path.name for path in (artefact.folder / "checkpoints").glob("step-*")
        )
        metrics = read_metrics(artefact.folder / "metrics.jsonl")
        document["validations"] = [r for r in metrics if r["kind"] == "validation"]
        document["last_record"] = next((r for r in reversed(metrics) if r["kind"] == "train"), None)
    return document


def find(workspace: Workspace, name: str) -> Artefact:
    """The artefact of a name, a run before anything else; ``kind/name`` says which is meant."""
    kind, slash, rest = name.partition("/")
    if slash and kind in FOLDERS:
        return workspace.get(kind, rest)
    order: tuple[Kind, ...] = ("run", "report", "shards", "tokenizer")
    for candidate in order:
        if name in workspace.names(candidate):
            return workspace.get(candidate, name)
    known = [known for candidate in order for known in workspace.names(candidate)]
    raise InputError(
        f"nothing in workspace {workspace.root} is named {name!r}{did_you_mean(name, known)}; "
        "`llmctl status` lists what there is"
    )


def resume_command(artefact: Artefact) -> str:
    """The command that goes on with a run, from any folder."""
    manifest = artefact.manifest
    # --force would start it anew.
    words = [word for word in manifest.command if word != "--force"]
    command = shlex.join(words)
    if manifest.directory and Path(manifest.directory) != Path.cwd():
        return f"cd {shlex.quote(manifest.directory)} && {command}"
    return command


def _short(artefact: Artefact) -> dict[str, Any]:
    manifest = artefact.manifest
    return {
        "name": manifest.name,
        "created": manifest.created,
        "age_seconds": max(0.0, time.time() - _seconds(manifest.finished or manifest.created)),
        "bytes": sum(record.size for record in manifest.files.values()),
        **manifest.summary,
    }


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
