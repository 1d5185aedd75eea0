"""Prune: free what nothing needs any more.

Checkpoints of finished runs, what crashed writers left half-written, and locks of what is gone.
What a command could still go on from stays: checkpoints of runs that are not finished, parts of
shards that are under way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmctl.errors import BusyError
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import (
    PARTIAL,
    REPLACED,
    clear_leftovers,
    folder_size,
    remove_folder,
)
from llmctl.workspace.locks import file_lock, is_held, is_locked, lock_path, writer_lock
from llmctl.workspace.manifests import FOLDERS

What = Literal["checkpoints", "left half-written", "lock"]


@dataclass(frozen=True)
class Waste:
    """Something that nothing needs."""

    what: What
    path: Path
    bytes: int

    def document(self) -> dict[str, Any]:
        return {"what": self.what, "path": str(self.path), "bytes": self.bytes}


def find(workspace: Workspace, *, kept: bool = False) -> list[Waste]:
    """What there is to free. kept: checkpoints that ``--keep-checkpoints`` keeps, too."""
    return [
        *_checkpoints(workspace, kept),
        *_leftovers(workspace),
        *_locks(workspace),
    ]


def _checkpoints(workspace: Workspace, kept: bool) -> Iterator[Waste]:
    for run in workspace.list("run"):
        folder = run.folder / "checkpoints"
        needless = run.finished and (kept or not _keeps(run))
        if needless and folder.is_dir() and not is_locked(run.folder):
            yield Waste("checkpoints", folder, folder_size(folder))


def _keeps(run: Artefact) -> bool:
    """Whether a run was to keep checkpoints after its end."""
    training = run.manifest.config.get("training")
    return isinstance(training, dict) and training.get("keep_checkpoints") in ("last", "all")


def _leftovers(workspace: Workspace) -> Iterator[Waste]:
    for folder in FOLDERS.values():
        for ending in (PARTIAL, REPLACED):
            for path in (workspace.root / folder).glob(f".*{ending}"):
                target = path.with_name(path.name[1 : -len(ending)])
                # What was to be replaced comes back where nothing took its place.
                if not is_locked(target) and (ending == PARTIAL or target.exists()):
                    yield Waste("left half-written", path, _size(path))
    for run in sorted((workspace.root / FOLDERS["run"]).glob("[!.]*")):
        if run.is_dir() and not is_locked(run):
            for path in [*run.glob(f".*{PARTIAL}"), *run.glob(f"checkpoints/.*{PARTIAL}")]:
                yield Waste("left half-written", path, _size(path))


def _size(path: Path) -> int:
    return folder_size(path) if path.is_dir() else path.lstat().st_size


def _locks(workspace: Workspace) -> Iterator[Waste]:
    expected = {
        lock_path(path)
        for folder in FOLDERS.values()
        for path in (workspace.root / folder).glob("[!.]*")
    }
    for path in sorted((workspace.root / ".locks").glob("*.lock")):
        of_artefact = path.name.startswith(tuple(f"{folder}-" for folder in FOLDERS.values()))
        if of_artefact and path not in expected and not is_held(path):
            yield Waste("lock", path, path.stat().st_size)


def free(workspace: Workspace, leftovers: list[Waste]) -> None:
    """Free what was found, but for what somebody has begun to write since."""
    for waste in leftovers:
        with contextlib.suppress(BusyError):
            if waste.what == "checkpoints":
                with writer_lock(waste.path.parent):
                    remove_folder(waste.path)
            elif waste.what == "lock":
                with file_lock(waste.path, "held"):
                    waste.path.unlink(missing_ok=True)
            else:
                folder = waste.path.parent
                if folder.parent == workspace.root:
                    clear_leftovers(folder, is_locked)
                else:
                    run = folder.parent if folder.name == "checkpoints" else folder
                    with writer_lock(run):
                        clear_leftovers(folder)
