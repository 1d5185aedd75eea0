"""Marks that BERT's uncased rules take off letters, where they are no accents.

The rules decompose a text and drop every mark: right for é, and wrong for が, whose mark makes it
another letter, for the vowels of Hindi and Thai and the points of Arabic and Hebrew. The folder of
a BertTokenizer can say no other rules (its vocab.txt is read by them everywhere), so they stay, and
the user is told how much of a text they change.
"""

from __future__ import annotations

from collections import Counter
from unicodedata import category, name, normalize

from llmctl.tokenizers.base import Tokenizer

MIN_SHARE_TO_REPORT = 0.001
"""Share of the characters that changes."""
ACCENTED = ("LATIN", "GREEK", "CYRILLIC", "COMBINING")
"""How the names of letters begin whose marks are accents, and those of accents alone."""
NO_ACCENT = "COMBINING KATAKANA"
"""How the names of letters begin whose marks are no accents: Japanese."""


def takes_marks(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer drops marks at all."""
    return tokenizer.normalized("が") == "か"


def marks_taken(tokenizer: Tokenizer, counts: Counter[str]) -> str:
    """What the user is told of the characters of a text that lose a mark; empty if few do.

    counts: how often each character comes.
    """
    changed = Counter(
        {character: count for character, count in counts.items() if _loses(tokenizer, character)}
    )
    visible = sum(count for character, count in counts.items() if not character.isspace())
    share = changed.total() / max(visible, 1)
    if share < MIN_SHARE_TO_REPORT:
        return ""
    character = max(changed, key=lambda character: (changed[character], character))
    left = tokenizer.normalized(character)
    shown = f"{character} becomes {left}" if left else f"{name(character)} goes"
    return (
        f"{share:.1%} of the characters lose marks that are no accents ({shown}), as the tokenizer "
        "is uncased; a cased one keeps them (--cased)"
    )


def _loses(tokenizer: Tokenizer, character: str) -> bool:
    if character.isascii() or not _marks(character):
        return False
    of_letter = name(normalize("NFD", character)[0], "")
    if of_letter.startswith(ACCENTED) and not of_letter.startswith(NO_ACCENT):
        return False
    return _marks(tokenizer.normalized(character)) < _marks(character)


def _marks(text: str) -> int:
    return sum(category(character) == "Mn" for character in normalize("NFD", text))
