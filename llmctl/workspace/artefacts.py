"""Artefacts: folders with a manifest, published atomically, found by name or by fingerprint."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from llmctl.errors import InputError, NameTaken, UsageError, did_you_mean
from llmctl.parsing import read_json
from llmctl.workspace.commands import resume_command
from llmctl.workspace.files import (
    clear_leftovers,
    published_folder,
    write_json,
)
from llmctl.workspace.identity import Identity
from llmctl.workspace.locks import is_locked, writer_lock
from llmctl.workspace.manifests import (
    FOLDERS,
    FORMAT_VERSION,
    MANIFEST,
    FileRecord,
    InputRecord,
    Kind,
    Manifest,
    now,
    read_manifest,
    refuse_newer,
    verify_files,
    write_manifest,
)
from llmctl.workspace.names import RULE, is_name, slug

DIFFERENCES = 6
"""How many differing options an error names."""


class Artefact:
    """A published artefact, or a run at any point of its life."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def finished(self) -> bool:
        return self.manifest.finished is not None

    def verify(self, prefix: str = "") -> None:
        """Check the files (those whose name starts with ``prefix``) against their digests."""
        files = {k: v for k, v in self.manifest.files.items() if k.startswith(prefix)}
        remedy = (
            f"copy it again from where it was made, or make it again: "
            f"llmctl {self.manifest.stage} … --name {self.manifest.name} --force"
        )
        verify_files(self.folder, files, remedy=remedy)

    def as_input(self, role: str) -> InputRecord:
        return InputRecord(role=role, name=self.manifest.reference, digest=self.manifest.digest)


def _manifest_in(folder: Path, kind: Kind) -> Manifest:
    """The manifest of a folder. Raises InputError, saying what to do, where it can't be had."""
    remedy = "move it away, choose another --name, or replace it with --force"
    # Unlike Path's these are false for what one may not look at.
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not the folder of a {kind}; {remedy}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder} can't be read; change its permissions")
    if not os.path.lexists(folder / MANIFEST):
        raise InputError(f"{folder} has no {MANIFEST}, so it is no {kind}; {remedy}")
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise InputError(f"{folder / MANIFEST} is of a {manifest.kind}, not of a {kind}; {remedy}")
    return manifest


def _taken(artefact: Artefact, identity: Identity) -> str:
    """What to say where a name stands for what was made otherwise."""
    manifest = artefact.manifest
    told = [str(difference) for difference in identity.differences(manifest)]
    if len(told) > DIFFERENCES:
        told[DIFFERENCES:] = [f"and {len(told) - DIFFERENCES} more"]
    what = f"{artefact.folder} was made with other options or inputs: {'; '.join(told)}"
    other = f"choose another --name, or --force to replace it (`llmctl status {manifest.name}` "
    other += "shows what made it)"
    if artefact.finished:
        return f"{what}; {other}"
    return f"{what}; go on with it as it was begun: {resume_command(manifest)} — or {other}"


class Workspace:
    """A folder of artefacts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        marker = self.root / "workspace.json"
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--workspace {self.root} is a file; give a folder")
        if marker.exists():
            value = read_json(marker)
            refuse_newer(marker, value.get("format_version") if isinstance(value, dict) else None)

    def prepare(self, kind: Kind | None = None) -> None:
        """Make the folder if it is new, and clear what crashed writers left.

        Raises InputError if artefacts (of ``kind``) can't be written there.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for place in (".locks", *([FOLDERS[kind]] if kind else [])):
            written = self.root / place if (self.root / place).exists() else self.root
            if not os.access(written, os.W_OK | os.X_OK):
                raise InputError(
                    f"{written} can't be written; change its permissions, or give another "
                    "--workspace"
                )
        marker = self.root / "workspace.json"
        if not marker.exists():
            # Two first commands may come at once, and what a killed one left has to go.
            with writer_lock(self.root / "workspace" / "format"):
                clear_leftovers(self.root)
                write_json(marker, {"format_version": FORMAT_VERSION})
        for folder in FOLDERS.values():
            clear_leftovers(self.root / folder, is_locked)

    def path(self, kind: Kind, name: str) -> Path:
        """Where an artefact lies. Raises UsageError for a name that can't be a folder's."""
        if not is_name(name):
            raise UsageError(f"--name {name!r}: {RULE}")
        return self.root / FOLDERS[kind] / name

    def names(self, kind: Kind) -> list[str]:
        """Names of the artefacts of a kind, in alphabetical order; of damaged ones too, and of what
        lies in an artefact's place and is none."""
        folder = self.root / FOLDERS[kind]
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if is_name(path.name))

    def list(
        self, kind: Kind, damaged: Callable[[str, InputError], None] = lambda name, error: None
    ) -> list[Artefact]:
        """All artefacts of a kind, oldest first; ``damaged`` is told of each that can't be read."""
        artefacts = []
        for name in self.names(kind):
            try:
                artefacts.append(self.get(kind, name))
            except InputError as error:
                damaged(name, error)
        return sorted(artefacts, key=lambda artefact: artefact.manifest.created)

    def get(self, kind: Kind, name: str) -> Artefact:
        """An artefact by name. Raises InputError if there is none, or it is damaged."""
        name = unicodedata.normalize("NFC", name)
        folder = self.root / FOLDERS[kind] / name
        if not is_name(name) or not os.path.lexists(folder):
            names = self.names(kind)
            known = (
                f"; there are: {', '.join(names)}"
                if names
                else f"; there are no {FOLDERS[kind]} yet"
            )
            raise InputError(
                f"no {kind} named {name!r} in workspace {self.root}"
                f"{did_you_mean(name, names) or known}"
            )
        manifest = _manifest_in(folder, kind)
        # A folder may have been copied under another name.
        return Artefact(folder, manifest.model_copy(update={"name": name}))

    def match(
        self,
        kind: Kind,
        requested: str | None,
        default: str,
        identity: Identity,
        *,
        force: bool,
        note: Callable[[str], None] = lambda text: None,
    ) -> tuple[str, Artefact | None]:
        """The name under which to make an artefact, and what is there already of the same content.

        With ``requested`` an artefact of that name must be what is asked for, unless ``force``;
        else NameTaken is raised. Without, any artefact that is, is the one, else the default
        name, numbered if it is taken. ``note`` is told of damaged ones, which
        match nothing; ``force`` replaces one that has the default name.
        """
        if requested is not None:
            folder = self.path(kind, requested)
            if not os.path.lexists(folder) or force:
                return requested, None
            existing = self.get(kind, requested)
            if identity.made(existing.manifest):
                return requested, Artefact(folder, identity.recorded(existing.manifest))
            raise NameTaken(_taken(existing, identity))
        damaged: list[str] = []

        def pass_over(name: str, error: InputError) -> None:
            damaged.append(name)
            note(f"{kind} {name} is passed over: {error}")

        for artefact in self.list(kind, pass_over):
            if identity.made(artefact.manifest):
                name = artefact.manifest.name
                match = Artefact(artefact.folder, identity.recorded(artefact.manifest))
                return (name, None) if force else (name, match)
        default = slug(default, kind)
        if force and default in damaged:
            return default, None
        taken, number, name = set(self.names(kind)), 2, default
        while name in taken:
            name, number = f"{default}-{number}", number + 1
        return name, None

    @contextlib.contextmanager
    def publish(self, manifest: Manifest) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Write an artefact: yields the hidden folder to fill and the summary to fill in.

        The lock is held throughout; the artefact appears, complete, when the block ends well.
        """
        target = self.path(manifest.kind, manifest.name)
        self.prepare(manifest.kind)
        summary: dict[str, Any] = {}
        with writer_lock(target), published_folder(target) as folder:
            yield folder, summary
            finished = manifest.model_copy(
                update={
                    "finished": now(),
                    "summary": summary,
                    "files": FileRecord.below(folder),
                }
            )
            write_manifest(folder, finished)

    def lineage(
        self, manifest: Manifest, depth: int = 1, seen: AbstractSet[str] = frozenset()
    ) -> Iterator[tuple[int, InputRecord, Manifest | None]]:
        """What an artefact was made from, depth first: (depth, record, its manifest if here)."""
        seen = {*seen, manifest.reference}
        for record in manifest.inputs:
            parent = self._parent(record)
            yield depth, record, parent
            if parent is not None and parent.reference not in seen:
                yield from self.lineage(parent, depth + 1, seen)

    def _parent(self, record: InputRecord) -> Manifest | None:
        try:
            return self.get(*record.artefact).manifest if record.artefact else None
        except InputError:  # gone, or damaged
            return None
