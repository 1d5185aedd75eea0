"""Manifests: what made an artefact, and what lies in it.

A manifest names the command, the resolved configuration, the inputs by digest, the seed and the
versions, and of each file the size and SHA-256. The *fingerprint* is the digest of what determines
the content: running the same command again finds the finished artefact by it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from llmctl import __version__
from llmctl.errors import InputError, UsageError
from llmctl.parsing import first_fault, read_json
from llmctl.workspace.commands import command_line
from llmctl.workspace.files import (
    crc32_file,
    sha256_file,
    sha256_json,
    write_json,
)

if TYPE_CHECKING:
    from llmctl.workspace.identity import Identity

FORMAT_VERSION = 2
"""The version of workspaces and manifests; raised when an older llmctl could not read a newer one.
2: manifests tell what differed from the defaults, and the defaults."""

Kind = Literal["tokenizer", "shards", "run", "report"]

FOLDERS: dict[Kind, str] = {
    "tokenizer": "tokenizers",
    "shards": "shards",
    "run": "runs",
    "report": "reports",
}

MANIFEST = "manifest.json"
FILE_ROLES = frozenset({"corpus", "data", "template"})
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


class Digested(Frozen, ABC):
    """A file as it was written: its size, and a digest in a field called like its algorithm."""

    size: int

    @classmethod
    @abstractmethod
    def of(cls, path: Path) -> Self:
        """The record of a file as it is now."""

    @classmethod
    def below(cls, folder: Path, names: Iterable[str] | None = None) -> dict[str, Self]:
        """The records of some files of a folder; by default of every one below it but its
        manifest."""
        if names is None:
            paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
            below = (path.relative_to(folder).as_posix() for path in paths)
            names = [name for name in below if name != MANIFEST]
        return {name: cls.of(folder / name) for name in names}


class FileRecord(Digested):
    """A file of an artefact."""

    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(size=path.stat().st_size, sha256=sha256_file(path))


class QuickRecord(Digested):
    """A file that is written again and again, and only has to be told from a damaged one."""

    crc32: str

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(size=path.stat().st_size, crc32=crc32_file(path))


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text).timestamp()
    except OverflowError as error:
        raise ValueError(str(error)) from None
    return text


RESULT_FIGURES = frozenset(
    {
        "bytes", "documents", "epochs", "parameters", "seconds", "steps", "tokens",
        "trainable_parameters", "validation_tokens", "vocab_size",
    }
)  # fmt: skip
"""Entries of a summary that are numbers wherever they are."""


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    for name in RESULT_FIGURES & summary.keys():
        value = summary[name]
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{name} is no number")
    return summary


Moment = Annotated[str, AfterValidator(_moment)]
"""A time, as ``now`` gives it."""


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
    identity: dict[str, Any] | None = None
    """What of the configuration decides the content and differed from the defaults, as it was
    asked for; None in format 1, whose fingerprint is of every field."""
    defaults: dict[str, Any] = {}
    """What decides the content beside it, by the defaults of the day."""
    seed: int | None = None
    llmctl_version: str = __version__
    torch_version: str | None = None
    python_version: str = ".".join(map(str, sys.version_info[:3]))
    created: Moment
    finished: Moment | None = None
    """None while a run is being trained."""
    summary: Annotated[dict[str, Any], AfterValidator(_figures)] = {}
    """The stage's own figures: documents, tokens, losses and others."""
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
    identity: Identity,
    seed: int | None = None,
    inputs: Sequence[InputRecord] | None = None,
    command: Sequence[str] | None = None,
) -> Manifest:
    """A manifest at the start of a stage. ``identity``: what is asked for, as far as it decides
    the content (options such as the number of workers do not). ``inputs``: where what it is made
    from is more than that. ``command``: one that makes this artefact, where that being run makes
    others too.

    Raises UsageError if the artefact would replace one that it is made from.
    """
    inputs = identity.inputs if inputs is None else inputs
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
        fingerprint=identity.fingerprint,
        identity=identity.given,
        defaults=identity.left,
        seed=seed,
        torch_version=version_of("torch"),
        created=now(),
    )


def fingerprint(stage: str, identity: Mapping[str, Any], inputs: Sequence[InputRecord]) -> str:
    """Digest of everything that determines an artefact's content."""
    digests = [[record.role, record.digest] for record in inputs]
    return sha256_json({"stage": stage, "config": dict(identity), "inputs": digests})


def verify_files(folder: Path, files: Mapping[str, Digested], *, remedy: str) -> None:
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


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """Read a folder's manifest. Raises InputError if it is damaged or of a newer format."""
    path = folder / name
    value = read_json(path)
    refuse_newer(path, value.get("format_version") if isinstance(value, dict) else None)
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise InputError(
            f"{path} is damaged ({first_fault(error)}); make the artefact again with --force"
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest in one step, in today's format."""
    value = {**manifest.model_dump(mode="json"), "format_version": FORMAT_VERSION}
    write_json(folder / MANIFEST, value)


def refuse_newer(path: Path, version: object) -> None:
    """Raises InputError if a file's format is none, or one that this llmctl does not read."""
    if not isinstance(version, int):
        raise InputError(f"{path} is damaged: it names no format_version; restore it from a copy")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, and this llmctl ({__version__}) reads up to "
            f"{FORMAT_VERSION}; upgrade llmctl: pip install --upgrade llmctl"
        )


def version_of(distribution: str) -> str | None:
    """The version of an installed package, None if it isn't."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
