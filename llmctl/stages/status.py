"""Status: what the workspace holds and how far its runs are, as JSON values."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from llmctl.errors import InputError, did_you_mean
from llmctl.reporting.run_log import LOG
from llmctl.stages.remove import REMOVABLE_KINDS
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.commands import resume_command
from llmctl.workspace.files import folder_size, folder_sizes
from llmctl.workspace.manifests import FOLDERS, MANIFEST, Kind
from llmctl.workspace.metrics import Glance, glance
from llmctl.workspace.runs import (
    METRICS,
    has_diverged,
    read_progress,
    run_state,
)

SCHEMA_VERSION = 1
"""The version of the documents that ``llmctl status --json`` prints; raised when a field changes
meaning."""


def overview(workspace: Workspace) -> dict[str, Any]:
    """Every artefact in short, the newest last; those that can't be read under ``damaged``."""
    damaged: list[dict[str, str]] = []

    def lines(kind: Kind, line: Callable[[Artefact], dict[str, Any]]) -> list[dict[str, Any]]:
        def note(name: str, error: InputError) -> None:
            damaged.append({"kind": kind, "name": name, "message": str(error)})

        made = []
        for artefact in workspace.list(kind, note):
            try:
                made.append(line(artefact))
            except InputError as error:
                note(artefact.manifest.name, error)
            except OSError as error:
                reason = f"{artefact.folder} can't be read: {error.strerror}"
                note(artefact.manifest.name, InputError(reason))
        return made

    return {
        "schema_version": SCHEMA_VERSION,
        "workspace": str(workspace.root),
        "tokenizers": lines("tokenizer", _short),
        "shards": lines("shards", _short),
        "runs": lines("run", run_line),
        "reports": lines("report", _short),
        "damaged": damaged,
    }


def run_line(artefact: Artefact, log: Glance | None = None) -> dict[str, Any]:
    """A run in short: state, progress, expected time left, losses, speed. log: if it was read."""
    manifest = artefact.manifest
    progress = read_progress(artefact.folder)
    log = log or glance(artefact.folder / METRICS)
    sizes = folder_sizes(artefact.folder)
    trained, looks = log.train, log.validations
    losses = [record["loss"] for record in trained if record.get("loss") is not None]
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
        "loss": losses[-1] if losses else None,
        "validation_loss": looks[-1].get("loss") if looks else None,
        "losses": losses,
        "rewards": [record["reward"] for record in trained if record.get("reward") is not None],
        "tokens_per_second": trained[-1].get("tokens_per_second") if trained else None,
        "utilisation": trained[-1].get("utilisation") if trained else None,
        "memory_bytes": trained[-1].get("memory_bytes") if trained else None,
        "age_seconds": max(0.0, time.time() - progress.get("updated", _seconds(manifest.created))),
        "bytes": sizes.total(),
        "checkpoint_bytes": sizes["checkpoints"],
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
            # A file may be anywhere.
            "present": parent is not None if record.artefact else None,
        }
        for depth, record, parent in workspace.lineage(manifest)
    ]
    log = glance(artefact.folder / METRICS) if manifest.kind == "run" else None
    line = run_line(artefact, log) if log else None
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": manifest.kind,
        "name": manifest.name,
        "folder": str(artefact.folder),
        "bytes": line["bytes"] if line else folder_size(artefact.folder),
        "command": shlex.join(manifest.command),
        "directory": manifest.directory,
        "config": manifest.config,
        "given": manifest.identity,
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
    if log is not None:
        document["run"] = line
        text_log = artefact.folder / LOG
        document["log"] = str(text_log) if text_log.exists() else None
        over = artefact.finished or has_diverged(artefact)
        document["resume"] = None if over else resume_command(manifest)
        document["checkpoints"] = sorted(
            path.name for path in (artefact.folder / "checkpoints").glob("step-*")
        )
        document["validations"] = log.validations
        document["last_record"] = log.train[-1] if log.train else None
    return document


def find(workspace: Workspace, name: str) -> Artefact:
    """The artefact of a name, a run before anything else; ``kind/name`` says which is meant."""
    kind, slash, rest = name.partition("/")
    if slash and kind in FOLDERS:
        return workspace.get(kind, rest)
    for candidate in REMOVABLE_KINDS:
        if name in workspace.names(candidate):
            return workspace.get(candidate, name)
    known = [known for candidate in REMOVABLE_KINDS for known in workspace.names(candidate)]
    raise InputError(
        f"nothing in workspace {workspace.root} is named {name!r}{did_you_mean(name, known)}; "
        "`llmctl status` lists what there is"
    )


SHOWN_SUMMARY: dict[str, tuple[str, ...]] = {
    "tokenizer": ("kind", "vocab_size"),
    "shards": ("tokenizer", "vocab_size", "documents", "tokens", "validation_tokens"),
}
"""What the summary of an artefact has to tell to be shown."""


def _short(artefact: Artefact) -> dict[str, Any]:
    manifest = artefact.manifest
    for name in SHOWN_SUMMARY.get(manifest.kind, ()):
        if manifest.summary.get(name) is None:
            raise InputError(
                f"{artefact.folder / MANIFEST} is damaged: its summary has no {name}; make the "
                "artefact again with --force"
            )
    line = {
        "name": manifest.name,
        "created": manifest.created,
        "age_seconds": max(0.0, time.time() - _seconds(manifest.finished or manifest.created)),
        "bytes": folder_size(artefact.folder),
    }
    return {**line, **{k: v for k, v in manifest.summary.items() if k not in line}}


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
