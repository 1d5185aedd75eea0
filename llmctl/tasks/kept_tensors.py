"""What a model that never changes makes of the data: computed once, and kept beside the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError
from torch import Tensor

from llmctl.errors import InputError
from llmctl.parsing import read_json_object
from llmctl.reporting.reporter import Reporter
from llmctl.training.device import Machine
from llmctl.workspace.files import published_folder, sha256_file, write_json
from llmctl.workspace.tensors import read_tensors, write_tensors

KEPT_RECORD = "record.json"


class _KeptRecord(BaseModel):
    """What the kept figures are of, and the digest of their file."""

    of: str
    sha256: str


def kept_tensor(
    path: Path,
    name: str,
    of: str,
    compute: Callable[[], Tensor],
    machine: Machine,
    reporter: Reporter,
    described: str,
) -> Tensor:
    """The tensor that a folder keeps, where it is of the same and whole; otherwise computed, and
    kept there. All processes must call it.

    name: the tensor's, and its file's. of: the digest of all that decides it. described: what it
    is, for a note where it is computed again.
    """
    found = None
    if path.exists():
        try:
            found = _kept(path, name, of)
        except InputError as error:
            reporter.note(f"{error}; {described} are computed again")
    if machine.world.all_reduce_min(int(found is not None)):
        assert found is not None
        return found
    computed = compute()
    if machine.world.is_main:
        with published_folder(path) as hidden:
            file = hidden / f"{name}.safetensors"
            write_tensors(file, {name: computed})
            write_json(
                hidden / KEPT_RECORD, _KeptRecord(of=of, sha256=sha256_file(file)).model_dump()
            )
    machine.world.barrier()
    return computed


def _kept(folder: Path, name: str, of: str) -> Tensor:
    """What a folder keeps. Raises InputError where it is damaged or of something else."""
    try:
        record = _KeptRecord.model_validate(read_json_object(folder / KEPT_RECORD))
    except ValidationError:
        raise InputError(f"{folder / KEPT_RECORD} is damaged") from None
    if record.of != of:
        raise InputError(f"{folder} is of another model or of other data")
    path = folder / f"{name}.safetensors"
    if not path.is_file() or sha256_file(path) != record.sha256:
        raise InputError(f"{path} is missing or damaged")
    return read_tensors(path)[name]
