"""What a foreign tokenizer.json is checked for before the library believes it.

The library takes a table as long as the largest id, and ends the process at some settings that
contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmctl.errors import InputError

SPARE_IDS = 100_000
"""How far ids may go beyond the number of pieces: vocabularies are padded, and leave some out."""
WORDPIECE_PREFIX = "##"
OWN_FILE = "take the tokenizer's own file"


def check_ids(path: Path, ids: Iterable[tuple[str, Any]], *, remedy: str = OWN_FILE) -> None:
    """Raises InputError if ids aren't whole numbers, each one piece's, without large gaps."""
    piece_of: dict[int, str] = {}
    for piece, number in ids:
        if type(number) is not int or number < 0:
            raise InputError(f"{path}: {piece!r} has {number!r}, not an id; {remedy}")
        if piece_of.setdefault(number, piece) != piece:
            raise InputError(
                f"{path}: {piece!r} has id {number}, which another piece has; {remedy}"
            )
    largest = max(piece_of, default=0)
    if largest >= len(piece_of) + SPARE_IDS:
        raise InputError(
            f"{path}: {piece_of[largest]!r} has id {largest}, and there are {len(piece_of)} pieces "
            f"in all; {remedy}"
        )


def check_settings(path: Path, settings: Any) -> None:
    """Raises InputError for what the library would take, and read otherwise or end at.

    What else is wrong with a tokenizer.json it tells by itself.
    """
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, dict):
        raise InputError(f"{path} is not a tokenizer.json: it has no model; {OWN_FILE}")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        check_ids(path, vocabulary.items())
        _check_added(path, settings.get("added_tokens"), vocabulary, len(vocabulary))
    elif isinstance(vocabulary, list):  # a unigram's
        number_of = {
            entry[0]: number
            for number, entry in enumerate(vocabulary)
            if isinstance(entry, list) and entry and isinstance(entry[0], str)
        }
        _check_added(path, settings.get("added_tokens"), number_of, len(vocabulary))
    prefix = model.get("continuing_subword_prefix")
    kind = model.get("type") or ("BPE" if model.get("merges") else "WordPiece")
    if kind == "BPE" and prefix:
        raise InputError(
            f"{path}: continuing_subword_prefix {prefix!r} of a BPE is not supported; give a "
            "tokenizer whose pieces have no prefix"
        )
    if kind == "WordPiece" and prefix not in (None, WORDPIECE_PREFIX):
        raise InputError(
            f"{path}: continuing_subword_prefix {prefix!r} of a WordPiece is not supported, only "
            f"{WORDPIECE_PREFIX}; give a BERT's tokenizer"
        )
    unknown = model.get("unk_token", "[UNK]")
    if kind == "WordPiece" and isinstance(vocabulary, dict) and unknown not in list(vocabulary):
        raise InputError(
            f"{path}: unk_token {unknown!r} is no piece of the vocabulary, and stands for what no "
            f"piece has; {OWN_FILE}"
        )
    if model.get("dropout"):
        raise InputError(
            f"{path}: with dropout {model['dropout']!r} the ids of a text are a matter of chance; "
            "set it to null"
        )


def _check_added(path: Path, added: Any, number_of: Mapping[str, int], following: int) -> None:
    """The library numbers tokens that aren't in the vocabulary anew, from its end on."""
    for token in added if isinstance(added, list) else []:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str):
            raise InputError(f"{path}: added_tokens has {token!r:.80}, not a token; {OWN_FILE}")
        if content in number_of:
            number = number_of[content]
        else:
            number, following = following, following + 1
        if token.get("id") != number:
            raise InputError(
                f"{path}: added token {content!r} has id {token.get('id')!r}, where the vocabulary "
                f"makes it {number}; {OWN_FILE}"
            )
