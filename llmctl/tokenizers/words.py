"""Words of a text, counted."""

from __future__ import annotations

import re

from llmctl.tokenizers.cuts import LONG

# The blocks that BERT calls Chinese characters: each is a word of its own.
CJK = "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
_WORD = re.compile(f"[{CJK}]|[^\\s{CJK}]+")


def count_words(text: str) -> int:
    """Words between spaces; each Chinese character counts as one."""
    if not text.isascii():
        return sum(1 for _ in _WORD.finditer(text))
    if len(text) <= LONG:
        return len(text.split())
    count = 0
    for begin in range(0, len(text), LONG):
        count += len(text[begin : begin + LONG].split())
        if begin and not text[begin - 1].isspace() and not text[begin].isspace():
            count -= 1  # counted on both sides
    return count
