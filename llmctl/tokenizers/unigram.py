"""Unigram language-model pieces (Kudo 2018), learned by sentencepiece, lossless on any text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import Unigram

from llmctl.tokenizers.fast import FastTokenizer
from llmctl.tokenizers.sentencepiece_training import SPECIAL, finish, learn_pieces

_INSIDE = "|".join(re.escape(token[1:-1]) for token in SPECIAL)
NAME_START = f"<(?=(?:{_INSIDE}|0x[0-9A-F]{{2}})>)"
"""Text is cut behind this: special tokens and bytes are pieces, and text must not match them."""


def learn_unigram(texts: Iterable[str], vocab_size: int, *, exact: bool = True) -> FastTokenizer:
    """Learn pieces. If ``exact``, raises VocabularyError if the corpus can't fill the vocabulary,
    AlphabetError if its alphabet doesn't fit."""
    learned = learn_pieces(texts, "unigram", vocab_size, exact=exact)
    pieces = list(zip(learned.names, learned.scores, strict=True))
    rust = RustTokenizer(Unigram(pieces, unk_id=1, byte_fallback=True))
    finish(rust, also_cut=NAME_START)
    # Scores lose digits in JSON: go through it once, so that a loaded copy is the same.
    return FastTokenizer("unigram", RustTokenizer.from_str(rust.to_str()))
