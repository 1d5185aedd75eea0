"""Where sentences start, in English and in Chinese, by rules.

A full stop ends a sentence if a space and something that can begin a sentence follow, and it
does not belong to an abbreviation, an initial or a number. A Chinese full stop ends one anywhere.
A blank line, or a line break before a bullet, always does.
"""

from __future__ import annotations

import re

CLOSING = "\"'”’»)\\]」』）》】"
_BOUNDARY = re.compile(
    # Chinese: the marks, what closes after them, and any space.
    f"[。！？]+[{CLOSING}]*\\s*"
    # English: the marks, what closes, a space, and what can begin a sentence.
    f"|(?P<stop>[.!?…]+[{CLOSING}]*)\\s+(?=[\"'“‘«(\\[「『（《*`]*[A-Z0-9À-ÖØ-ÞА-ЯΑ-Ω\u3400-\u9fff])"
    # A blank line; a line break before a bullet or a number.
    r"|\n[^\S\n]*\n\s*"
    r"|\n[^\S\n]*(?=[-*•·‣]\s|\d{1,3}[.)]\s)"
)

ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "rev",
        "gen",
        "col",
        "sgt",
        "capt",
        "lt",
        "st",
        "sen",
        "rep",
        "gov",
        "pres",
        "hon",
        "jr",
        "sr",
        "vs",
        "e.g",
        "i.e",
        "cf",
        "viz",
        "al",
        "ca",
        "approx",
        "dept",
        "est",
        "fig",
        "figs",
        "no",
        "nos",
        "vol",
        "pp",
        "ed",
        "eds",
        "eq",
        "ch",
        "sec",
        "ref",
        "refs",
        "art",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "sun",
        "inc",
        "ltd",
        "co",
        "corp",
        "bros",
        "u.s",
        "u.k",
        "u.n",
        "a.m",
        "p.m",
        "ph.d",
    ]
)
"""Words whose full stop seldom ends a sentence, without it and in lower case."""

_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]*$")


def sentence_starts(text: str) -> list[int]:
    """Character offsets of the sentences: 0 first, then ascending, each at a visible character.

    >>> sentence_starts("Dr. Lee came. She left.")
    [0, 14]
    """
    starts = [0]
    for match in _BOUNDARY.finditer(text):
        end = match.end()
        if end >= len(text) or (match["stop"] is not None and _continues(text, match)):
            continue
        if end > starts[-1]:
            starts.append(end)
    return starts


def _continues(text: str, match: re.Match[str]) -> bool:
    """Whether a full stop belongs to an abbreviation or an initial, not to a sentence's end."""
    stop = match["stop"]
    if stop != ".":
        return False
    word = _LAST_WORD.search(text, max(0, match.start() - 24), match.start())
    before = word[0] if word else ""
    # "J. K. Rowling": one capital letter; but "Plan B. Then" is rarer than an initial.
    if len(before) == 1 and before.isupper():
        return True
    return before.lower() in ABBREVIATIONS
