"""The tokenizer that a checkpoint of nanoGPT was trained with, which it doesn't hold.

It lies beside the checkpoint or is named: the ``meta.pkl`` of a data set of characters, or the
files of GPT-2's (``vocab.json`` and ``merges.txt``, or ``tokenizer.json``), by which nanoGPT's
other data sets are cut. A ``meta.pkl`` is a pickle, and a pickle is a program: its steps are read
one by one here, and any that would do more than put texts and numbers into a table is refused.
"""

from __future__ import annotations

import pickletools
import shlex
from pathlib import Path
from typing import Any

from llmctl import tokenizers
from llmctl.errors import InputError, read_errors_naming
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.characters import build_characters
from llmctl.tokenizers.gpt2 import MERGES_OF

META = "meta.pkl"
"""The file of a data set with its characters: ``vocab_size``, ``itos`` and ``stoi``."""
MOST_META = 1 << 25
"""Bytes of one at most: every character that there is takes a third of it."""
BESIDE_CHECKPOINT = ("tokenizer.json", *MERGES_OF)
"""What is looked for beside a checkpoint where no ``meta.pkl`` is there."""


def read_tokenizer_for(
    checkpoint: Path, named: Path | None, vocab_size: int, dataset: str | None
) -> tuple[tuple[Path, ...], Tokenizer]:
    """The tokenizer of a checkpoint, and the file it is from where it is a ``meta.pkl``.

    named: its place, by default beside the checkpoint. dataset: what the checkpoint says it was
    trained on. Raises InputError where there is none, or it has other pieces.
    """
    place = named
    if place is None:
        folder = checkpoint.parent
        beside = (folder / name for name in (META, *BESIDE_CHECKPOINT))
        place = next((path for path in beside if path.is_file()), None)
    if place is None:
        whose = f" (its data set was {dataset!r})" if dataset else ""
        raise InputError(
            f"{checkpoint} has no tokenizer{whose}; put beside it the {META} of its data set or, "
            "where that has none, GPT-2's vocab.json and merges.txt, or name one: llmctl import "
            f"{shlex.quote(str(checkpoint))} --tokenizer PATH"
        )
    of_characters = place.suffix == ".pkl"
    tokenizer = _characters_of(place) if of_characters else tokenizers.load(place)
    if tokenizer.vocab_size > vocab_size or (of_characters and tokenizer.vocab_size != vocab_size):
        raise InputError(
            f"{place} has {tokenizer.vocab_size} pieces, and the model {vocab_size}; give the "
            "tokenizer that it was trained with"
        )
    return ((place,) if of_characters else ()), tokenizer


def _characters_of(path: Path) -> Tokenizer:
    """The tokenizer of a ``meta.pkl``. Raises InputError where it is none of characters."""
    with read_errors_naming(path):
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_META else b""
    try:
        meta = _plain_pickle(data)
        numbers = meta["stoi"]
        if not isinstance(numbers, dict):
            raise TypeError("it is none")
        characters = sorted(numbers, key=numbers.__getitem__)
        if [numbers[character] for character in characters] != list(range(len(characters))):
            raise ValueError("its numbers are not 0, 1, …")
        if not characters or not all(_is_character(piece) for piece in characters):
            raise ValueError("its pieces are not characters")
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} has no table stoi ({error}); {_INSTEAD}") from None
    except ValueError as error:
        raise InputError(f"{path} holds no characters' numbers: {error}; {_INSTEAD}") from None
    return build_characters(characters, special=())


def _is_character(piece: object) -> bool:
    """Whether something is one character; halves of a surrogate pair are none."""
    return isinstance(piece, str) and len(piece) == 1 and not "\ud800" <= piece <= "\udfff"


_INSTEAD = (
    "make a folder with a tokenizer.json of the tokenizer that the model was trained with, and "
    "name that: --tokenizer"
)
_PICKLED_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG1"}
_PICKLED_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "UNICODE"}
_KEPT = {"PUT", "BINPUT", "LONG_BINPUT"}
_TAKEN = {"GET", "BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME"}


def _plain_pickle(data: bytes) -> Any:
    """The value of a pickle of tables, lists, texts and whole numbers.

    Raises ValueError for a pickle of anything else, or a damaged one.
    """
    stack: list[Any] = []
    marks: list[int] = []
    kept: dict[int, Any] = {}
    try:
        steps: list[tuple[str, Any]] = [
            (opcode.name, argument) for opcode, argument, _ in pickletools.genops(data)
        ]
    except ValueError:
        raise ValueError("it is damaged") from None
    try:
        for name, argument in steps:
            if name in _PICKLED_NUMBERS or name in _PICKLED_TEXTS:
                stack.append(argument)
            elif name == "MEMOIZE":
                kept[len(kept)] = stack[-1]
            elif name in _KEPT:
                kept[int(argument)] = stack[-1]
            elif name in _TAKEN:
                stack.append(kept[int(argument)])
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("EMPTY_DICT", "EMPTY_LIST"):
                stack.append({} if name == "EMPTY_DICT" else [])
            elif name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "DICT", "LIST"):
                _gather(name, stack, marks)
            elif name == "STOP":
                return stack.pop()
            elif name not in _NOTHING:
                raise ValueError(f"it does more than hold a table ({name})")
    except (IndexError, KeyError, TypeError, AttributeError):
        pass  # what a damaged one comes to
    raise ValueError("it is damaged")


def _gather(name: str, stack: list[Any], marks: list[int]) -> None:
    """Put what lies on the stack into the table or list below it."""
    single = {"SETITEM": 2, "APPEND": 1}
    begin = len(stack) - single[name] if name in single else marks.pop()
    items = stack[begin:]
    del stack[begin:]
    if name in ("DICT", "LIST"):  # of the first protocol, which makes it here
        stack.append({} if name == "DICT" else [])
    if name in ("APPEND", "APPENDS", "LIST"):
        stack[-1].extend(items)
    else:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
