"""Files of options as inputs of what is made from them."""

from __future__ import annotations

from pathlib import Path

from llmctl.data.text.sources import no_file
from llmctl.errors import InputError
from llmctl.workspace.files import sha256_file
from llmctl.workspace.manifests import InputRecord


def data_record(data: Path, option: str = "data") -> InputRecord:
    """The file of an option as an input. Raises InputError if it isn't a file."""
    check_data(data, option)
    return InputRecord(role=option, name=str(data.resolve()), digest=sha256_file(data))


def check_data(data: Path, option: str = "data") -> None:
    """Raises InputError unless an option's value is a file."""
    if data.is_dir():
        raise no_file(f"--{option}", data)
    if not data.exists():
        raise InputError(f"--{option} {data}: no such file")
    if not data.is_file():
        raise InputError(f"--{option} {data} is a pipe or a device, and is read twice; give a file")
