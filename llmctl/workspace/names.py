"""Names of artefacts: those that a folder can have on any file system, in any script.

Letters and digits are Unicode's, with the marks that belong to them, in composed form (NFC): two
spellings that look alike are one name.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST_NAME = 100
"""Characters."""
LONGEST_NAME_BYTES = 200
"""Bytes of UTF-8: a file system's 255, less what locks and hidden folders add."""
LONGEST_DEFAULT = 90
LONGEST_DEFAULT_BYTES = 180
"""A default name leaves room for a number, and for a name made from it."""

PUNCTUATION = "._-"
RULE = (
    "a name has letters, digits, '.', '_' and '-', at most 100 (fewer where letters take several "
    "bytes), and starts with a letter or digit"
)


def is_name(name: str) -> bool:
    """Whether an artefact may be called so.

    >>> is_name("情感-2"), is_name("../x"), is_name("-x")
    (True, False, False)
    """
    return (
        0 < len(name) <= LONGEST_NAME
        and name == unicodedata.normalize("NFC", name)
        and name[0].isalnum()
        and all(map(_is_allowed, name))
        and len(name.encode()) <= LONGEST_NAME_BYTES
    )


def _is_allowed(character: str) -> bool:
    return (
        character.isalnum()
        or character in PUNCTUATION
        # Vowels of Devanagari, tones of Thai.
        or unicodedata.category(character) in ("Mn", "Mc")
    )


def slug(text: str, fallback: str) -> str:
    """A name made from any text: accents of Latin letters go, all that is no letter becomes '-'.

    >>> slug("my café (1)", "data")
    'my-cafe-1'
    >>> slug("评论", "data")
    '评论'
    """
    kept: list[str] = []
    for character in unicodedata.normalize("NFC", text):
        if unicodedata.category(character) == "Mn" and (not kept or kept[-1].isascii()):
            continue  # an accent that has no composed form with its letter
        kept += _without_accent(character) if _is_allowed(character) else " "
    name = re.sub(" +", "-", "".join(kept))
    return shortened(name, LONGEST_DEFAULT, LONGEST_DEFAULT_BYTES) or fallback


def _without_accent(character: str) -> str:
    """``e`` for ``é``; the character itself where no part of it is ASCII."""
    parts = unicodedata.normalize("NFKD", character)
    return parts.encode("ascii", "ignore").decode() or character


def shortened(name: str, characters: int = LONGEST_NAME, size: int = LONGEST_NAME_BYTES) -> str:
    """The beginning of a name, of so many characters and bytes at most, that can be a name."""
    cut = name.encode()[:size].decode(errors="ignore")[:characters]
    cut = cut.rstrip(PUNCTUATION)
    while cut and not cut[0].isalnum():
        cut = cut[1:]
    return cut
