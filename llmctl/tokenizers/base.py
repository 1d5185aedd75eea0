"""What every tokenizer does, and the one that runs on the `tokenizers` library.

A tokenizer is a folder with ``tokenizer.json`` (or ``spiece.model``), in the layout that
``transformers.AutoTokenizer`` opens. Ids of special tokens are known by their role.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from llmctl.errors import InputError

ROLES: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "<|endoftext|>"),
    "eos": ("</s>", "<|endoftext|>"),
}
"""The usual spellings of each special token, in BERT, RoBERTa and GPT-2."""

_CONTINUES = {
    "wordpiece": lambda token: token.startswith("##"),
    "bpe": lambda token: not token.startswith(("Ġ", "Ċ", "ĉ", "▁")),
    "unigram": lambda token: not token.startswith("▁"),
}

# The blocks that BERT calls Chinese characters: each is a word of its own.
CJK = "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
_WORD = re.compile(f"[{CJK}]|[^\\s{CJK}]+")


def count_words(text: str) -> int:
    """Words between spaces; each Chinese character counts as one."""
    return len(text.split()) if text.isascii() else sum(1 for _ in _WORD.finditer(text))


class VocabularyError(InputError):
    """A vocabulary larger than the corpus has pieces for; ``available`` is what it has."""

    def __init__(self, vocab_size: int, available: int) -> None:
        super().__init__(
            f"--vocab-size {vocab_size}: the corpus has only {available} distinct pieces; "
            f"use --vocab-size {available} or less, or give more text"
        )
        self.available = available


class AlphabetError(InputError):
    """A vocabulary too small for the corpus's characters alone; ``needed`` would hold them."""

    def __init__(self, vocab_size: int, needed: int) -> None:
        super().__init__(
            f"--vocab-size {vocab_size}: the corpus's alphabet alone needs {needed} pieces; "
            f"use --vocab-size {needed} or more"
        )
        self.needed = needed


def roomy(needed: int) -> int:
    """A size for an alphabet that the usual one can't hold: a third is left to longer pieces."""
    return -(-3 * needed // 2)


class Tokenizer(ABC):
    """Text to ids and back."""

    kind: str
    """``wordpiece``, ``bpe`` or ``unigram``."""
    vocab_size: int
    special: Mapping[str, int]
    """Ids by role: those of ``ROLES`` that the vocabulary has."""
    sentencewise = False
    """Whether the ids of a text are those of its sentences end to end. Elsewhere a start of text
    may get a piece of its own (``▁``), so a text must be encoded whole."""

    @abstractmethod
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of a text, with nothing added around it.

        allow_special: read ``[MASK]`` and the like in the text as special tokens; by default
        they are ordinary text, so a corpus can't smuggle them in.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of many texts, concatenated, and the number of ids of each."""

    @abstractmethod
    def encode_offsets(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of a text, and the character at which each begins, in rising order."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of some ids."""

    @abstractmethod
    def id_to_token(self, id: int) -> str:
        """The vocabulary's entry at an id."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """The id of a vocabulary entry."""

    @abstractmethod
    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        """Write the files that ``load`` and ``transformers.AutoTokenizer`` read."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what decides the ids: equal tokenizers have equal digests."""

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    @property
    def continuation(self) -> NDArray[np.bool_]:
        """(vocab_size,): whether a token continues the word before it."""
        continues = _CONTINUES[self.kind]
        flags = [continues(self.id_to_token(number)) for number in range(self.vocab_size)]
        result = np.asarray(flags, dtype=bool)
        result[list(self.special_ids)] = False
        return result

    @property
    def ordinary(self) -> NDArray[np.int64]:
        """Every id that is not a special token's."""
        return np.setdiff1d(np.arange(self.vocab_size), list(self.special_ids))


def roles_in(token_to_id: Any) -> dict[str, int]:
    """The special tokens that a vocabulary has, by role."""
    found = {}
    for role, spellings in ROLES.items():
        for spelling in spellings:
            number = token_to_id(spelling)
            if number is not None:
                found[role] = number
                break
    return found


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, kind: str, rust: RustTokenizer) -> None:
        self.kind = kind
        self._rust = rust
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = True
        # Not the number of pieces: a file may skip ids, or repeat a piece.
        self.vocab_size = max(rust.get_vocab().values(), default=-1) + 1
        self.special = roles_in(rust.token_to_id)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        self._rust.encode_special_tokens = not allow_special
        try:
            return list(self._rust.encode(text, add_special_tokens=False).ids)
        finally:
            self._rust.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        parts = [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return (np.concatenate(parts) if parts else np.empty(0, np.uint32)), lengths

    def encode_offsets(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        encoding = self._rust.encode(text, add_special_tokens=False)
        begins = np.fromiter((begin for begin, _ in encoding.offsets), dtype=np.int64)
        return np.asarray(encoding.ids, dtype=np.uint32), np.maximum.accumulate(begins)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return str(self._rust.decode(list(ids), skip_special_tokens=skip_special))

    def id_to_token(self, id: int) -> str:
        return self._rust.id_to_token(id) or ""

    def token_to_id(self, token: str) -> int | None:
        number: int | None = self._rust.token_to_id(token)
        return number

    def save(self, folder: Path, *, max_length: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rust.encode_special_tokens = False
        try:
            text = self._rust.to_str(pretty=False)
        finally:
            self._rust.encode_special_tokens = True
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        write_transformers_config(folder, self, max_length, self._transformers_fields())

    def digest(self) -> str:
        return hashlib.sha256(self._rust.to_str(pretty=False).encode()).hexdigest()

    def _transformers_fields(self) -> dict[str, Any]:
        return {"tokenizer_class": "PreTrainedTokenizerFast"}


def write_transformers_config(
    folder: Path, tokenizer: Tokenizer, max_length: int | None, fields: Mapping[str, Any]
) -> None:
    """tokenizer_config.json and special_tokens_map.json, as transformers reads them."""
    tokens = {
        f"{role}_token": tokenizer.id_to_token(number) for role, number in tokenizer.special.items()
    }
    config: dict[str, Any] = {**fields, **tokens}
    if max_length is not None:
        config["model_max_length"] = max_length
    for name, value in (("tokenizer_config", config), ("special_tokens_map", tokens)):
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
