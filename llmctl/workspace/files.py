"""Writing files so that a crash, a full disk or a reader never meets half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.errors import InputError


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hexadecimal SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some file systems refuse to sync a folder; the rename is still atomic there.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replace a file in one step: readers see the old content or the new, nothing between.

    durable: flush it to the disk first, which takes milliseconds.
    """
    payload = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(payload)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write JSON in one step, indented so that a person can read it."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Read a JSON file of ours. Raises InputError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; make the artefact again with --force") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); make the artefact again with --force"
        ) from None


@contextlib.contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """A hidden sibling to write into, that becomes ``target`` when the block ends well.

    Every file is flushed before the rename. If the block raises, the hidden folder goes and
    ``target`` is as it was. An existing ``target`` is replaced.
    """
    hidden = hidden_sibling(target)
    shutil.rmtree(hidden, ignore_errors=True)
    restore_replaced(target)
    hidden.mkdir(parents=True)
    try:
        yield hidden
        for path in sorted(hidden.rglob("*")):
            fsync_path(path)
        fsync_path(hidden)
        if target.exists():
            target.rename(replaced_sibling(target))
        hidden.rename(target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    finally:
        restore_replaced(target)


def restore_replaced(target: Path) -> None:
    """Put a folder back whose replacement stopped between its two renames; drop it otherwise."""
    old = replaced_sibling(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(target)


def hidden_sibling(target: Path) -> Path:
    """Where ``target`` is prepared before it is published."""
    return target.with_name(f".{target.name}.partial")


def replaced_sibling(target: Path) -> Path:
    """Where ``target`` lies for the instant in which another takes its place."""
    return target.with_name(f".{target.name}.replaced")
