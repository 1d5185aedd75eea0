"""GPT-2's own layout: ``vocab.json`` and ``merges.txt``, or OpenAI's ``encoder.json`` and
``vocab.bpe``. GPT-2, RoBERTa, Qwen 2 and their kin come so; the tokenizer's class, named beside
them, tells the pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from llmctl.errors import InputError
from llmctl.tokenizers.base import SPECIAL_SPELLINGS
from llmctl.tokenizers.checking import check_ids
from llmctl.tokenizers.fast import FastTokenizer
from llmctl.tokenizers.hf_config import CONFIG, read_object, read_text
from llmctl.tokenizers.patterns import GPT2, QWEN, byte_level
from llmctl.tokenizers.token_bytes import CHARACTER_OF

MERGES_OF = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
"""The file of merges beside each file of the vocabulary."""
VERSION = "#version"
"""How the line before the merges begins, which is none."""


def load_merges(vocabulary_path: Path) -> FastTokenizer:
    """A byte-level BPE from its vocabulary and the merges beside it.

    Raises InputError naming the file and the line that is malformed.
    """
    if not vocabulary_path.is_file():
        raise InputError(f"{vocabulary_path}: no such file, which merges need; copy both files")
    merges_path = vocabulary_path.with_name(MERGES_OF.get(vocabulary_path.name, "merges.txt"))
    if not merges_path.is_file():
        raise InputError(
            f"{vocabulary_path} needs its merges beside it: there is no {merges_path.name}; copy "
            "both files"
        )
    vocabulary = _read_vocabulary(vocabulary_path)
    merges = _read_merges(merges_path, vocabulary)
    config = read_object(vocabulary_path.with_name(CONFIG))
    rust = RustTokenizer(BPE(vocabulary, merges))
    if str(config.get("tokenizer_class")).startswith("Qwen2"):
        rust.normalizer = normalizers.NFC()
        rust.pre_tokenizer = byte_level(QWEN)
    else:
        rust.pre_tokenizer = byte_level(GPT2)
    rust.decoder = decoders.ByteLevel()
    known = {token for spellings in SPECIAL_SPELLINGS.values() for token in spellings}
    special = sorted(known & vocabulary.keys(), key=vocabulary.__getitem__)
    rust.add_special_tokens([AddedToken(token, special=True) for token in special])
    _add_tokens(rust, config, vocabulary_path.with_name(CONFIG))
    return FastTokenizer("bpe", rust)


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocabulary = read_object(path)
    check_ids(path, vocabulary.items(), remedy="take GPT-2's own file")
    missing = [character for character in CHARACTER_OF.values() if character not in vocabulary]
    if missing:
        raise InputError(
            f"{path} is not a byte-level vocabulary: it has no piece for the byte written "
            f"{missing[0]!r}; give GPT-2's vocab.json, or a tokenizer.json"
        )
    if any(token.endswith("</w>") for token in vocabulary):
        raise InputError(
            f"{path} marks the ends of words (</w>), which only a tokenizer.json can tell how to "
            "split; give that"
        )
    return vocabulary


def _read_merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(read_text(path, "merges are").split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith(VERSION)):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise InputError(
                f"{path}:{number} has {len(parts)} parts, and a merge is two with a space between; "
                "take the file anew"
            )
        first, second = parts
        for piece in (first, second, first + second):
            if piece not in vocabulary:
                raise InputError(
                    f"{path}:{number}: {piece!r} is not in the vocabulary; take both files from "
                    "one place"
                )
        merges.append((first, second))
    return merges


def _add_tokens(rust: RustTokenizer, config: dict[str, Any], path: Path) -> None:
    """The tokens that tokenizer_config.json adds to the vocabulary, in the order of their ids."""
    added = config.get("added_tokens_decoder", {})
    try:
        for number, entry in sorted((int(key), entry) for key, entry in added.items()):
            token = AddedToken(entry["content"], special=entry.get("special", True))
            rust.add_tokens([token])
            if rust.token_to_id(token.content) != number:
                raise InputError(
                    f"{path}: added_tokens_decoder gives {token.content!r} the id {number}, and "
                    f"the vocabulary goes on at {rust.token_to_id(token.content)}; take both files "
                    "from one place"
                )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: added_tokens_decoder is malformed; mend the file") from None
