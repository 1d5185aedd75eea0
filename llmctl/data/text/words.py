"""What a word is, wherever words are told apart by their characters: letters, digits and marks.

Python's ``\\w`` leaves out marks (Unicode's category M): vowels of Hindi and Thai, points of
Hebrew and Arabic, accents that stand alone. They belong to the word of the letter before them, as
do the joiners between two letters (UAX #29, rule WB4). A mark without a letter is no word: those
that choose how an emoji is drawn stand behind one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

JOINERS = "\u200c\u200d"
"""Between letters of one word, in Persian and in the scripts of India."""
WITH_MARKS = (range(0x300, 0x20000), range(0xE0000, 0xE0200))
"""Code points among which all marks are: looking at each there is takes ten times as long."""

# Thai and Lao, Burmese, Khmer, kana, Chinese characters (Korean is written with spaces).
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
UNSPACED_SHARE = 0.2
"""The share of the words' characters from which a text counts as written without spaces: such
characters say more each than letters do, and product names in Latin letters are common among
them."""


@cache
def marks() -> str:
    """All marks and joiners, to be written into a class of a regular expression."""
    codes_of_marks = [
        code for codes in WITH_MARKS for code in codes if unicodedata.category(chr(code))[0] == "M"
    ]
    spans: list[list[int]] = []
    for code in codes_of_marks:
        if spans and code == spans[-1][1] + 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return JOINERS + "".join(f"{chr(first)}-{chr(last)}" for first, last in spans)


@cache
def word_pattern(without: str = "") -> str:
    """A word as a regular expression.

    without: characters, as a class has them, that stand in none; else the underscore is of one.
    """
    no = f"(?![{without}])" if without else ""
    rest = rf"(?:{no}[\w{marks()}])*" if without else rf"[\w{marks()}]*"
    return rf"{no}\w{rest}"


def is_unspaced(texts: Sequence[str]) -> bool:
    """Whether texts are of a script that is written without spaces."""
    word = re.compile(word_pattern())
    characters = sum(len(word_found) for text in texts for word_found in word.findall(text))
    return sum(len(UNSPACED.findall(text)) for text in texts) > UNSPACED_SHARE * characters
