"""Options by which texts are kept to a form: JSON of a schema, a regular expression, choices, a
grammar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.cli.options import option
from llmctl.errors import InputError, read_errors_naming

SCHEMA = option("Keep texts to JSON of this schema: a file, or the JSON itself ({…}).")
REGEX = option("Keep texts to a regular expression.")
CHOICE = option("A text that may be written, and no other; repeated.", default=[])
GRAMMAR = option("Keep texts to a grammar: a file in Lark's notation.")


def form(asked: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """What texts are kept to."""
    from llmctl.inference.constraints import form_of

    schema, grammar = asked["schema"], asked["grammar"]
    if schema is not None and not schema.lstrip().startswith("{"):
        schema = _read_text(Path(schema), "--schema")
    if grammar is not None:
        grammar = _read_text(grammar, "--grammar")
    return form_of({**asked, "schema": schema, "grammar": grammar})


def _read_text(path: Path, option: str) -> str:
    """A small file that an option names. Raises InputError where it can't be read."""
    if not path.is_file():
        raise InputError(f"{option} {path} is not there, or no file; check the path")
    with read_errors_naming(path):
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{option} {path} is not UTF-8; convert it") from None
