"""JSON and TOML that somebody else may have written: parsed in one place, so that whatever a text
holds becomes a value or a reason why not, never a failure of the parser's own.

A parser calls itself for each level of nesting, and so do those that walk through the value
afterwards: what is nested deeper than any real file is refused, wherever the parser would give up.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmctl.errors import NO_ACCESS, InputError

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_DEPTH = 100
"""Levels of nesting; tokenizers and configurations have fewer than ten."""
LONG_JSON = 100_000
"""Characters of JSON that are read without collecting garbage."""
MAX_TOML = 1 << 20
"""Characters of TOML; its parser's time grows with the square of a key's length."""
REMAKE = "make the artefact again with --force"
"""What to do about a damaged file of the workspace."""


class Malformed(ValueError):
    """A text that can't be read; the message is a reason, to be put behind the file's name.

    line: where that is, from 1; None if it isn't at one place.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def not_json(where: object, error: Malformed) -> InputError:
    """The error of a JSON document, or of a line that is one."""
    if error.line is None:
        return InputError(f"{where} can't be read as JSON: {error}")
    return InputError(f"{where}:{error.line} is not JSON: {error}")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document. Raises Malformed; a key that comes twice is, too, as one of
    its values would be lost."""
    text = _decoded(text)
    try:
        with gc_paused() if len(text) > LONG_JSON else contextlib.nullcontext():
            value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise Malformed(error.msg, error.lineno) from None
    except (ValueError, RecursionError) as error:
        _refuse(error)
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_depth(value)
    return value


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """The table of a TOML document. Raises Malformed."""
    text = _decoded(text)
    if len(text) > MAX_TOML:
        raise Malformed(f"it is longer than {MAX_TOML:,} characters")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Malformed(str(error)) from None
    except (ValueError, RecursionError) as error:
        _refuse(error)
    check_depth(table)
    return table


def check_depth(value: object) -> None:
    """Raises Malformed if tables and lists are nested more than MAX_DEPTH deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for entry in level
            for child in (entry.values() if isinstance(entry, dict) else entry)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise Malformed(f"it is nested more than {MAX_DEPTH} levels deep")


def read_json(path: Path, remedy: str = REMAKE) -> Any:
    """The value of a JSON file. remedy: what to do if it is missing or damaged, which the message
    of the InputError then ends with."""
    try:
        data = _bytes_of(path)
        value = parse_json(data)
        if _HALF.search(data):  # which JSON can escape, and nobody could write again
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {remedy}") from None
    except Malformed as error:
        where = "" if error.line is None else f"line {error.line}: "
        raise InputError(f"{path} is damaged ({where}{error}); {remedy}") from None
    except UnicodeEncodeError:
        raise InputError(
            f"{path} is damaged (half of a surrogate pair, which is not Unicode); {remedy}"
        ) from None
    return value


def read_json_object(path: Path, remedy: str = REMAKE) -> dict[str, Any]:
    """The fields of a JSON file that holds an object. Raises InputError as ``read_json`` does."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it holds no table of fields; {remedy}")
    return value


def first_fault(error: ValidationError) -> str:
    """What is wrong with a value that was parsed, and where in it."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def _bytes_of(path: Path) -> bytes:
    """A file's bytes. Raises FileNotFoundError, and InputError for what can't be read, or not to
    its end: a pipe that nobody writes to would be waited for."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is a folder or a device; give a file")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in NO_ACCESS:
            raise InputError(
                f"{path} can't be read: {error.strerror}; check the path and its permissions"
            ) from None
        raise


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = text[error.start]
        raise Malformed(f"byte 0x{byte:02x} at offset {error.start} is not UTF-8") from None


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Collect no garbage meanwhile: beside PyTorch's modules that takes four fifths of the time in
    which a long document is read, and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _refuse(error: Exception) -> NoReturn:
    """Say what a parser found that isn't a mistake in the notation."""
    if isinstance(error, Malformed):
        raise error
    if isinstance(error, RecursionError):
        raise Malformed(f"it is nested more than {MAX_DEPTH} levels deep") from None
    if "integer string conversion" in str(error):
        raise Malformed("a number in it has more than 4,300 digits") from None
    raise Malformed(str(error)) from None


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"the key {twice[:80]!r} comes twice")
    return table


_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder(object_pairs_hook=_once)
