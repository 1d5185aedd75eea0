"""Artefacts: folders with a manifest, published atomically, found by name or by fingerprint.

A manifest says what made the folder (command, resolved configuration, inputs by digest, seed,
versions) and what lies in it (size and SHA-256 of each file). The *fingerprint* is the digest of
what determines the content: running the same command again finds the finished artefact by it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llmctl import __version__
from llmctl.errors import InputError, NameTaken, UsageError, did_you_mean
from llmctl.workspace.files import (
    clear_leftovers,
    crc32_file,
    published_folder,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)
from llmctl.workspace.locks import is_locked, writer_lock

FORMAT_VERSION = 1
"""Of workspaces and manifests; raised when an older llmctl could not read a newer one."""

Kind = Literal["tokenizer", "shards", "run", "report"]

FOLDERS: dict[Kind, str] = {
    "tokenizer": "tokenizers",
    "shards": "shards",
    "run": "runs",
    "report": "reports",
}

MANIFEST = "manifest.json"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LONGEST_DEFAULT = 90
"""Characters of a default name: leaves room for a number, and for a name made from it."""
FILE_ROLES = frozenset({"corpus", "data"})
"""Roles of inputs that are files, whatever their names look like."""


class Frozen(BaseModel):
    """Base of the records kept in a workspace."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputRecord(Frozen):
    """Something that an artefact was made from."""

    role: str
    name: str
    """``kind/name`` of an artefact of this workspace, or the name of a file."""
    digest: str

    @property
    def artefact(self) -> tuple[Kind, str] | None:
        """(kind, name) of the artefact that it is, or None for a file."""
        kind, slash, name = self.name.partition("/")
        if slash and kind in FOLDERS and self.role not in FILE_ROLES:
            return kind, name
        return None


class FileRecord(Frozen):
    """A file of an artefact."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """As the file is now."""
        return cls(size=path.stat().st_size, sha256=sha256_file(path))


class QuickRecord(Frozen):
    """A file that is written again and again, and only has to be told from a damaged one."""

    size: int
    crc32: str

    @classmethod
    def of(cls, path: Path) -> QuickRecord:
        """As the file is now."""
        return cls(size=path.stat().st_size, crc32=crc32_file(path))


class Manifest(Frozen):
    """What made an artefact, and what lies in it."""

    kind: Kind
    name: str
    format_version: int = FORMAT_VERSION
    stage: str
    command: list[str]
    directory: str = ""
    """Where the command was given: its paths are relative to it."""
    config: dict[str, Any]
    inputs: list[InputRecord]
    fingerprint: str
    seed: int | None = None
    llmctl_version: str = __version__
    torch_version: str | None = None
    python_version: str = ".".join(map(str, sys.version_info[:3]))
    created: str
    finished: str | None = None
    """None while a run is being trained."""
    summary: dict[str, Any] = {}
    """The stage's own figures: documents, tokens, losses, …"""
    files: dict[str, FileRecord] = {}

    @property
    def digest(self) -> str:
        """Digest of the content: equal for equal files, whatever the name or the time."""
        return sha256_json({name: record.sha256 for name, record in self.files.items()})

    @property
    def reference(self) -> str:
        """``kind/name``, as lineage writes it."""
        return f"{self.kind}/{self.name}"


def now() -> str:
    """The time in UTC, as manifests write it; fine enough to tell which of two is the newer."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def new_manifest(
    kind: Kind,
    name: str,
    *,
    stage: str,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    inputs: Sequence[InputRecord],
    seed: int | None,
    command: Sequence[str] | None = None,
) -> Manifest:
    """A manifest at the start of a stage. ``identity``: the part of the config that decides
    the content (options such as the number of workers do not). ``command``: one that makes this
    artefact, where that being run makes others too.

    Raises UsageError if the artefact would replace one that it is made from.
    """
    if (kind, name) in [record.artefact for record in inputs]:
        raise UsageError(
            f"--name {name}: {kind} {name} is what this is made from and would be replaced; "
            "choose another --name"
        )
    return Manifest(
        kind=kind,
        name=name,
        stage=stage,
        command=list(command or command_line()),
        directory=str(Path.cwd()),
        config=dict(config),
        inputs=list(inputs),
        fingerprint=fingerprint(stage, identity, inputs),
        seed=seed,
        torch_version=_torch_version(),
        created=now(),
    )


def command_line() -> list[str]:
    """The command being run, with the workspace that the environment names written out."""
    words = ["llmctl", *sys.argv[1:]]
    given = any(word in ("-w", "--workspace") or word.startswith("--workspace=") for word in words)
    if "LLMCTL_WORKSPACE" in os.environ and not given:
        words += ["--workspace", os.environ["LLMCTL_WORKSPACE"]]
    return words


def slug(text: str, fallback: str) -> str:
    """A name that a folder can have, made from any text: accents go, all else becomes '-'.

    >>> slug("my café (1)", "data")
    'my-cafe-1'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    return name[:LONGEST_DEFAULT].rstrip("-._") or fallback


def fingerprint(stage: str, identity: Mapping[str, Any], inputs: Sequence[InputRecord]) -> str:
    """Digest of everything that determines an artefact's content."""
    digests = [[record.role, record.digest] for record in inputs]
    return sha256_json({"stage": stage, "config": dict(identity), "inputs": digests})


AnyRecord = TypeVar("AnyRecord", FileRecord, QuickRecord)


def describe_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, FileRecord]:
    """Size and digest of some files of a folder; by default of every one below it but its
    manifest."""
    return _described(folder, names, FileRecord)


def describe_quickly(folder: Path, names: Iterable[str] | None = None) -> dict[str, QuickRecord]:
    """The same with CRC-32 as the digest."""
    return _described(folder, names, QuickRecord)


def _described(
    folder: Path, names: Iterable[str] | None, record: type[AnyRecord]
) -> dict[str, AnyRecord]:
    if names is None:
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        below = (path.relative_to(folder).as_posix() for path in paths)
        names = [name for name in below if name != MANIFEST]
    return {name: record.of(folder / name) for name in names}


def verify_files(
    folder: Path, files: Mapping[str, FileRecord] | Mapping[str, QuickRecord], *, remedy: str
) -> None:
    """Compare files with their records. Raises InputError naming the first that differs."""
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {remedy}")
        size = path.stat().st_size
        if size != record.size:
            raise InputError(
                f"{path} has {size} bytes where its manifest says {record.size}; {remedy}"
            )
        if record.of(path) != record:
            raise InputError(
                f"{path} has changed since it was written (its digest differs from the "
                f"manifest's); {remedy}"
            )


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


class Workspace:
    """A folder of artefacts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._check_format()

    def _check_format(self) -> None:
        marker = self.root / "workspace.json"
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--workspace {self.root} is a file; give a folder")
        if marker.exists():
            value = read_json(marker)
            _refuse_newer(marker, value.get("format_version") if isinstance(value, dict) else None)

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
        if not NAME_PATTERN.fullmatch(name):
            raise UsageError(
                f"--name {name!r}: a name has letters, digits, '.', '_' and '-', at most 100, "
                "and starts with a letter or digit"
            )
        return self.root / FOLDERS[kind] / name

    def names(self, kind: Kind) -> list[str]:
        """Names of the artefacts of a kind, in alphabetical order."""
        folder = self.root / FOLDERS[kind]
        if not folder.is_dir():
            return []
        return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file())

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
        """An artefact by name. Raises InputError if there is none or its manifest is bad."""
        folder = self.root / FOLDERS[kind] / name
        if not NAME_PATTERN.fullmatch(name) or not (folder / MANIFEST).is_file():
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
        return Artefact(folder, read_manifest(folder))

    def match(
        self,
        kind: Kind,
        requested: str | None,
        default: str,
        fingerprint: str,
        *,
        force: bool,
        note: Callable[[str], None] = lambda text: None,
    ) -> tuple[str, Artefact | None]:
        """The name under which to make an artefact, and what is there already of the same content.

        With ``requested`` an artefact of that name must have the same fingerprint, unless
        ``force``; else NameTaken is raised. Without, any artefact with the same fingerprint is the
        one, else the default name, numbered if it is taken. ``note`` is told of damaged ones, which
        match nothing; ``force`` replaces one that has the default name.
        """
        if requested is not None:
            folder = self.path(kind, requested)
            if not (folder / MANIFEST).is_file() or force:
                return requested, None
            existing = self.get(kind, requested)
            if existing.manifest.fingerprint == fingerprint:
                return requested, existing
            raise NameTaken(
                f"{folder} was made with other options or inputs; choose another --name, or "
                f"--force to replace it (`llmctl status {requested}` shows what made it)"
            )
        damaged: list[str] = []

        def pass_over(name: str, error: InputError) -> None:
            damaged.append(name)
            note(f"{kind} {name} is passed over: {error}")

        for artefact in self.list(kind, pass_over):
            if artefact.manifest.fingerprint == fingerprint:
                name = artefact.manifest.name
                return (name, None) if force else (name, artefact)
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
                    "files": describe_files(folder),
                }
            )
            write_manifest(folder, finished)

    def lineage(self, manifest: Manifest) -> Iterator[tuple[int, InputRecord, Manifest | None]]:
        """What an artefact was made from, depth first: (depth, record, its manifest if here)."""
        yield from self._lineage(manifest, 1, {manifest.reference})

    def _lineage(
        self, manifest: Manifest, depth: int, seen: set[str]
    ) -> Iterator[tuple[int, InputRecord, Manifest | None]]:
        for record in manifest.inputs:
            parent = self._parent(record)
            yield depth, record, parent
            if parent is not None and parent.reference not in seen:
                yield from self._lineage(parent, depth + 1, {*seen, parent.reference})

    def _parent(self, record: InputRecord) -> Manifest | None:
        try:
            return self.get(*record.artefact).manifest if record.artefact else None
        except InputError:  # gone, or damaged
            return None


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest. Raises InputError if it is damaged or of a newer format."""
    path = folder / MANIFEST
    value = read_json(path)
    _refuse_newer(path, value.get("format_version") if isinstance(value, dict) else None)
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is damaged ({field}: {first['msg']}); make the artefact again with --force"
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest in one step."""
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def _refuse_newer(path: Path, version: object) -> None:
    if not isinstance(version, int):
        raise InputError(f"{path} is damaged: it names no format_version; restore it from a copy")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, and this llmctl ({__version__}) reads up to "
            f"{FORMAT_VERSION}; upgrade llmctl: pip install --upgrade llmctl"
        )


def _torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
