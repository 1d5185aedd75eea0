"""Parts of an artefact that several processes make, on any machines that share the workspace.

``WORKSPACE/.parts/NAME`` has the *plan* (``plan.json``), which the first process to come makes and
all others follow, and ``part-00001`` …, each published at once like an artefact. Whoever comes when
all parts are there puts them together and removes the folder.

Two kinds of locks keep processes apart. The folder's *turn* is held to make the plan, to put the
parts together and to remove the folder; it is waited for, and its holder waits for nobody. A part's
own lock is held while that part is written, and is taken only in the folder's turn: so a folder of
which no part is locked can be removed in one's turn.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from llmctl import __version__
from llmctl.errors import BusyError, InputError
from llmctl.parsing import read_json, read_json_object
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import (
    hidden_sibling,
    published_folder,
    sha256_file,
    sha256_json,
    write_json,
)
from llmctl.workspace.locks import file_lock, is_held, writer_lock
from llmctl.workspace.manifests import FileRecord, Frozen, InputRecord

PLAN, RECORD = "plan.json", "part.json"
DIGEST = "digest"
"""In plan.json, of all the rest: parts by a plan that was changed would not be its parts."""


class PlannedFile(Frozen):
    """A file of the corpus as it was when the plan was made."""

    name: str
    size: int
    sha256: str


class PartsPlan(Frozen):
    """What all parts have in common."""

    parts: int = Field(ge=1)
    llmctl_version: str = __version__
    identity: dict[str, Any]
    """The part of the configuration that decides the content."""
    inputs: list[InputRecord]
    """What the finished artefact's fingerprint is made of."""
    made_from: list[InputRecord]
    """What its manifest names: the learned tokenizer too."""
    fingerprint: str
    files: list[PlannedFile]
    tokenizer_kind: str
    tokenizer_digest: str
    vocab_size: int
    tokenizer_files: dict[str, FileRecord]
    characters: list[Annotated[int, Field(ge=0)]] | None = None
    """Characters in each part, where the split goes by them."""
    created: str
    replaces: str | None = None
    """When the artefact of this name was created that the parts will replace."""


class PartRecord(Frozen):
    """What a part says of itself."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    text_bytes: int = Field(ge=0)
    duplicates: int = Field(ge=0)
    """Repeated within the part."""
    first_file: int | None
    before: int = Field(ge=0)
    """Texts of the first file that it read and left to earlier parts."""
    last_file: int | None
    until: int = Field(ge=0)
    """Texts of the last file up to where it ended."""
    seconds: float
    files: dict[str, FileRecord] = Field(default_factory=dict)


class PartsFolder:
    """The folder in which the parts of the shards NAME come together."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.name = workspace.path("shards", name).name
        self.folder = workspace.root / ".parts" / name
        self.tokenizer = self.folder / "tokenizer"

    def exclusive_lock(
        self, waiting: Callable[[], None] | None = None
    ) -> AbstractContextManager[None]:
        """Have the folder for oneself, but for parts that are being written."""
        return writer_lock(self.folder, waiting)

    def plan(self) -> PartsPlan | None:
        """The plan, or None if there is none. Raises InputError if it is damaged."""
        path = self.folder / PLAN
        if not path.is_file():
            return None
        try:
            value = read_json_object(path)
            stated = value.pop(DIGEST, None)  # none in plans of before
            plan = PartsPlan.model_validate(value)
        except (ValidationError, InputError):
            plan = None
        if plan is None or stated not in (None, sha256_json(value)):
            raise InputError(f"{path} is damaged; remove {self.folder} and run all parts again")
        return plan

    def new_plan(self) -> AbstractContextManager[Path]:
        """A hidden folder for what belongs to a plan, to end with ``write_plan``."""
        return published_folder(self.folder)

    def part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}"

    def record(self, number: int) -> PartRecord | None:
        """The record of a finished part, or None. Raises InputError if it is damaged."""
        if not self.has(number):
            return None
        try:
            return PartRecord.model_validate(read_json(self.part(number) / RECORD))
        except (ValidationError, InputError):
            raise self._drop(number, f"{self.part(number) / RECORD} is damaged") from None

    def has(self, number: int) -> bool:
        """Whether a part is finished."""
        return (self.part(number) / RECORD).is_file()

    def missing(self, plan: PartsPlan) -> list[int]:
        """The parts that are not finished."""
        return [number for number in range(1, plan.parts + 1) if not self.has(number)]

    def publish(self, number: int) -> AbstractContextManager[Path]:
        """The hidden folder of a part, to end with ``write_record``."""
        return published_folder(self.part(number))

    def lock(self, number: int, of: int) -> AbstractContextManager[None]:
        """The lock of a part, to be taken in one's turn. Raises BusyError if it is held."""
        busy = (
            f"part {number}/{of} of shards {self.name} is being written by another process; "
            "wait until it is done"
        )
        return file_lock(self.folder / "locks" / f"part-{number:05d}.lock", busy)

    def remove(self) -> None:
        """Remove all parts, in one's turn. Raises BusyError if one is being written."""
        for path in sorted((self.folder / "locks").glob("*.lock")):
            if is_held(path):
                raise BusyError(
                    f"{path.stem} of shards {self.name} is being written by another process; wait "
                    "until it is done"
                )
        # The plan goes first: a folder without one is no folder of parts.
        (self.folder / PLAN).unlink(missing_ok=True)
        for folder in (self.folder, hidden_sibling(self.folder)):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_if_idle(self) -> None:
        """Remove all parts, unless somebody is at work on them."""
        if self.folder.exists():
            with suppress(BusyError), self.exclusive_lock():
                self.remove()

    def verified(self, number: int) -> PartRecord:
        """The record of a part whose files are as it says, in one's turn.

        Raises InputError if they aren't; the part is then removed.
        """
        record = self.record(number)
        if record is None:
            raise self._drop(number, f"{self.part(number)} is missing")
        for name, file in record.files.items():
            path = self.part(number) / name
            if not path.is_file() or sha256_file(path) != file.sha256:
                raise self._drop(number, f"{path} has changed since it was written")
        return record

    def _drop(self, number: int, reason: str) -> InputError:
        shutil.rmtree(self.part(number), ignore_errors=True)
        return InputError(f"{reason}; that part was removed: run it again")


def write_plan(folder: Path, plan: PartsPlan) -> None:
    value = plan.model_dump(mode="json")
    write_json(folder / PLAN, {**value, DIGEST: sha256_json(value)})


def write_record(folder: Path, record: PartRecord) -> None:
    described = record.model_copy(update={"files": FileRecord.below(folder)})
    write_json(folder / RECORD, described.model_dump(mode="json"))
