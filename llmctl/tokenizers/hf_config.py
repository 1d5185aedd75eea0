"""What the files beside a tokenizer say of it: its special tokens' roles and its chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmctl.errors import InputError, read_errors_naming
from llmctl.parsing import Malformed, not_json, parse_json
from llmctl.tokenizers.base import CHAT_TEMPLATE, TRANSFORMERS_ROLES, Tokenizer

CONFIG = "tokenizer_config.json"


def read_companions(tokenizer: Tokenizer, folder: Path) -> None:
    """Let the files of a folder decide a tokenizer's roles and its template, where they do.

    What tokenizer_config.json says goes before special_tokens_map.json, and that before
    generation_config.json; what none names is known by its usual spelling. What the vocabulary
    lacks is passed over. All that generation_config.json's eos_token_id lists ends a text, or where
    there is none config.json's does. Raises InputError for a malformed file.
    """
    config = read_object(folder / CONFIG)
    named = {
        **_ids_in(folder / "generation_config.json", tokenizer.vocab_size),
        **_tokens_in(folder / "special_tokens_map.json", tokenizer.token_to_id),
        **_tokens_in(folder / CONFIG, tokenizer.token_to_id),
    }
    tokenizer.special = {**tokenizer.special, **named}
    for name in ("generation_config.json", "config.json"):
        if ends := _ends_in(folder / name, tokenizer.vocab_size):
            tokenizer.further_ends = ends
            break
    if not (folder / "tokenizer.json").is_file():  # which says itself what it adds
        tokenizer.adds = _additions(folder / CONFIG, config)
    side = config.get("truncation_side", "right")
    if side not in ("left", "right", None):
        raise InputError(
            f"{folder / CONFIG}: truncation_side is {side!r}, not left or right; mend the file"
        )
    tokenizer.cuts_left = side == "left"
    tokenizer.chat_template = _template(folder, config)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file, empty if the file isn't there."""
    if not path.is_file():
        return {}
    try:
        value = parse_json(read_text(path, "it ought to be"))
    except Malformed as error:
        raise not_json(path, error) from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not an object; take the tokenizer's own file")
    return value


def read_text(path: Path, ought: str) -> str:
    """A file's text. ought: what the message says of how it should be."""
    try:
        with read_errors_naming(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte 0x{error.object[error.start]:02x} at offset {error.start} is not "
            f"UTF-8; {ought}"
        ) from None


def _tokens_in(path: Path, token_to_id: Callable[[str], int | None]) -> dict[str, int]:
    fields, tokens = read_object(path), {}
    for role in TRANSFORMERS_ROLES:
        value = fields.get(f"{role}_token")
        token = value.get("content") if isinstance(value, dict) else value
        if token is None or token is False:  # "no such token" in two generations of the format
            continue
        if not isinstance(token, str):
            raise InputError(
                f"{path}: {role}_token is {value!r}, not a token's name; mend the file"
            )
        if (number := token_to_id(token)) is not None:
            tokens[role] = number
    return tokens


def _ends_in(path: Path, vocab_size: int) -> frozenset[int]:
    """The ids that end a text."""
    value = read_object(path).get("eos_token_id")
    ends = value if isinstance(value, list) else [] if value is None else [value]
    for number in ends:
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{path}: eos_token_id has {number!r}, not an id; mend the file")
    return frozenset(number for number in ends if 0 <= number < vocab_size)


def _additions(path: Path, config: dict[str, Any]) -> tuple[bool, bool] | None:
    """Whether bos stands before each text and eos behind, if the file says something of it."""
    said = {name: config.get(name) for name in ("add_bos_token", "add_eos_token")}
    for name, value in said.items():
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{path}: {name} is {value!r}, not true or false; mend the file")
    if all(value is None for value in said.values()):
        return None
    without = {
        role for role in ("bos", "eos") if f"{role}_token" in config and not config[f"{role}_token"]
    }
    bos, eos = (bool(value) for value in said.values())
    return bos and "bos" not in without, eos and "eos" not in without


def _ids_in(path: Path, vocab_size: int) -> dict[str, int]:
    fields, ids = read_object(path), {}
    for role in ("bos", "eos", "pad"):
        value = fields.get(f"{role}_token_id")
        number = next(iter(value), None) if isinstance(value, list) else value
        if number is None:
            continue
        if not isinstance(number, int):
            raise InputError(f"{path}: {role}_token_id is {value!r}, not an id; mend the file")
        if 0 <= number < vocab_size:
            ids[role] = number
    return ids


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        return read_text(path, "a template is")
    value = config.get("chat_template")
    if isinstance(value, list):  # several, by name
        if not all(isinstance(entry, dict) for entry in value):
            raise InputError(
                f"{folder / CONFIG}: chat_template lists what are no templates; mend the file"
            )
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    if isinstance(value, dict):
        if "default" not in value:
            raise InputError(
                f"{folder / CONFIG}: of the chat templates {', '.join(value)} none is called "
                "default; call the one to take so"
            )
        value = value["default"]
    if value is not None and not isinstance(value, str):
        raise InputError(f"{folder / CONFIG}: chat_template is no text; mend the file")
    return value
