"""Remove artefacts, each at once: hidden by a rename first, then deleted, so that a kill leaves
nothing half."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import BusyError, InputError, UsageError, did_you_mean
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import folder_size, remove_folder
from llmctl.workspace.locks import is_locked, lock_path, writer_lock
from llmctl.workspace.manifests import FOLDERS, Kind
from llmctl.workspace.parts import PartsFolder

REMOVABLE_KINDS: tuple[Kind, ...] = ("run", "report", "shards", "tokenizer")


@dataclass(frozen=True)
class Target:
    """An artefact's folder; its manifest may be damaged."""

    kind: Kind
    name: str
    folder: Path

    @property
    def reference(self) -> str:
        return f"{self.kind}/{self.name}"

    def document(self) -> dict[str, Any]:
        size = 0 if self.folder.is_symlink() else folder_size(self.folder)
        return {"kind": self.kind, "name": self.name, "bytes": size}


def target_of(workspace: Workspace, asked: str) -> Target:
    """The artefact of ``kind/name``, or of a name that only one has.

    Raises InputError if there is none, UsageError if there are several.
    """
    kind, slash, name = asked.rstrip("/").partition("/")
    by_folder = {folder: kind for kind, folder in FOLDERS.items()}
    chosen = by_folder.get(kind) or (kind if kind in FOLDERS else None)
    if slash and chosen is None:
        raise UsageError(f"{asked!r}: write a name, or KIND/NAME with one of {', '.join(FOLDERS)}")
    kinds = [k for k in REMOVABLE_KINDS if not slash or k == chosen]
    name = name if slash else kind
    targets = [Target(k, name, p) for k in kinds for p in _folders(workspace, k) if p.name == name]
    if len(targets) > 1:
        raise UsageError(
            f"{name} is the name of {' and of '.join(t.reference for t in targets)}; say which"
        )
    if not targets:
        known = [path.name for k in kinds for path in _folders(workspace, k)]
        raise InputError(
            f"nothing in workspace {workspace.root} is named {asked!r}{did_you_mean(name, known)}; "
            "`llmctl status` lists what there is"
        )
    return targets[0]


def _folders(workspace: Workspace, kind: Kind) -> list[Path]:
    folder = workspace.root / FOLDERS[kind]
    paths = folder.iterdir() if folder.is_dir() else []
    # A file or a broken link in the place of one is damaged, as `llmctl status` has it.
    return sorted(path for path in paths if not path.name.startswith("."))


def made_from(workspace: Workspace, target: Target) -> list[Artefact]:
    """The artefacts that name it among their inputs."""
    return [
        artefact
        for kind in REMOVABLE_KINDS
        for artefact in workspace.list(kind)
        if (target.kind, target.name) in [record.artefact for record in artefact.manifest.inputs]
    ]


def plan(workspace: Workspace, names: Sequence[str], *, force: bool) -> list[Target]:
    """What would be removed. Raises UsageError where something else was made from it, unless
    ``force``, and BusyError where it is being written."""
    targets = list(dict.fromkeys(target_of(workspace, name) for name in names))
    gone = {target.reference for target in targets}
    for target in targets:
        if is_locked(target.folder):
            raise BusyError(
                f"{target.reference} is being written by another process; wait until it is done, "
                "or stop it first"
            )
        users = [a.manifest.reference for a in made_from(workspace, target)]
        left = [user for user in users if user not in gone]
        if left and not force:
            raise UsageError(
                f"{', '.join(left)} {'was' if len(left) == 1 else 'were'} made from "
                f"{target.reference}: remove those too, or --force (they stay usable, but can't be "
                "traced back to it or made again from it)"
            )
    return targets


def remove(workspace: Workspace, targets: Sequence[Target]) -> None:
    """Remove what was planned. Raises BusyError where it is being written by now."""
    measured = _measured_by(workspace, targets)
    for target in targets:
        with writer_lock(target.folder):
            remove_folder(target.folder)
            if os.path.lexists(target.folder):
                raise InputError(
                    f"{target.folder} can't be removed; change its permissions, or remove it by "
                    "hand"
                )
            lock_path(target.folder).unlink(missing_ok=True)
        if target.kind == "shards":
            PartsFolder(workspace, target.name).remove_if_idle()
    for name in measured & set(workspace.names("run")):
        from llmctl.tasks.model_card import write_card

        with contextlib.suppress(InputError):  # a damaged run
            write_card(workspace, workspace.get("run", name))


def _measured_by(workspace: Workspace, targets: Sequence[Target]) -> set[str]:
    """The runs whose cards tell of reports among the targets."""
    gone = {target.name for target in targets if target.kind == "report"}
    reports = [one.manifest for one in workspace.list("report") if one.manifest.name in gone]
    records = (record for report in reports for record in report.inputs if record.role == "model")
    return {record.artefact[1] for record in records if record.artefact is not None}
