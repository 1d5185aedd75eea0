"""Characters as tokens: the smallest vocabulary, with which small models do well on small corpora.

The ids are the places of the corpus's characters in sorted order, as nanoGPT numbers them; the
special tokens follow. A character that the corpus lacks is ``<unk>``; nanoGPT's own vocabularies
have neither it nor any special token, and such a character is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel

from llmctl.errors import InputError
from llmctl.tokenizers.base import Layout
from llmctl.tokenizers.bpe import BPE_SPECIAL as BPE_SPECIAL
from llmctl.tokenizers.cuts import Rule
from llmctl.tokenizers.fast import FastTokenizer, begin_with

UNKNOWN = "<unk>"
CHARACTER_SPECIAL = (*BPE_SPECIAL, UNKNOWN)
EACH = r"[\s\S]"
"""Matches one character, whichever."""
_LAST_CHARACTER = 0x10FFFF
_NO_PIECE = 0xFFFFFFFF


class CharacterTokenizer(FastTokenizer):
    """One id for each character, found in a table by its number in Unicode."""

    sentencewise = True

    def __init__(self, rust: RustTokenizer) -> None:
        super().__init__("characters", rust)
        unknown = rust.token_to_id(rust.model.unk_token)
        self._refuses = unknown is None
        self._id_of = np.full(
            _LAST_CHARACTER + 1, _NO_PIECE if self._refuses else unknown, dtype=np.uint32
        )
        for token, number in rust.get_vocab().items():
            if len(token) == 1:
                self._id_of[ord(token)] = number

    @cached_property
    def _cut_rule(self) -> Rule | None:
        return lambda text, place: True

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        if allow_special and self.special:
            return super().encode(text, allow_special=True)
        ids: list[int] = self._ids(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        return self._ids("".join(texts)), lengths

    def encode_offsets(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return self._ids(text), np.arange(len(text))

    @cached_property
    def _own_layout(self) -> Layout:
        # Without special tokens there is nothing to find, and what is tried may have no id.
        return super()._own_layout if self.special else Layout()

    def _ids(self, text: str) -> NDArray[np.uint32]:
        ids = self._id_of[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]
        if self._refuses and (ids == _NO_PIECE).any():
            unknown = text[int(np.argmax(ids == _NO_PIECE))]
            raise InputError(
                f"the tokenizer has no piece for the character {unknown!r}, and none for unknown "
                "ones; leave it out of the text"
            )
        return ids


def learn_characters(texts: Iterable[str]) -> CharacterTokenizer:
    """The characters of some texts: as many pieces as there are, and the special tokens."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return build_characters(sorted(seen))


def build_characters(
    characters: Sequence[str], special: Sequence[str] = CHARACTER_SPECIAL
) -> CharacterTokenizer:
    """The tokenizer of some characters by their places, and of special tokens behind them, of which
    the first stands before each text."""
    vocabulary = {token: number for number, token in enumerate([*characters, *special])}
    rust = RustTokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    rust.pre_tokenizer = pre_tokenizers.Split(Regex(EACH), "isolated")
    rust.decoder = decoders.Fuse()
    if special:
        rust.add_special_tokens([AddedToken(token, special=True) for token in special])
        begin_with(rust, special[0])
    return CharacterTokenizer(rust)


def takes_characters(settings: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json with a WordLevel model takes text character by character."""
    special = {token["content"] for token in settings["added_tokens"]}
    each = pre_tokenizers.Split(Regex(EACH), "isolated")
    return (
        settings["normalizer"] is None
        and settings["pre_tokenizer"] == json.loads(each.__getstate__())
        and (not special or settings["model"]["unk_token"] in settings["model"]["vocab"])
        and all(len(token) == 1 for token in settings["model"]["vocab"].keys() - special)
    )
