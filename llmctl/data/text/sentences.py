"""Where sentences start, in English and in Chinese, by rules.

A full stop ends a sentence if a space and something that can begin a sentence follow, and it
does not belong to an abbreviation, an initial or a list's number. A Chinese full stop ends one
anywhere. A blank line, or a line break before a bullet, always does; a heading of Markdown is a
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CLOSING = "\"'”’»)\\]」』）》】"
_OPENING = "[\"'“‘«(\\[「『（《*`]*"
_CHINESE = "\u3400-\u9fff"
_BULLET = r"(?:[-*•·‣]\s|\d{1,3}[.)]\s)"
_BOUNDARY = re.compile(
    # One class first, by which the engine skips to the candidates.
    "[。！？.!?…\n](?:"
    # Chinese: the marks, what closes after them, and any space.
    f"(?<=[。！？])[。！？!?…]*[{CLOSING}]*\\s*"
    # The same with a keyboard's ASCII marks.
    f"|(?<=[{_CHINESE}][.!?])[.!?。！？]*[{CLOSING}]*\\s*(?={_OPENING}[{_CHINESE}])"
    # English: the marks, what closes, notes' numbers, a space, and what can begin a sentence.
    f"|(?<=[.!?…])(?<![.!?…][.!?…])(?P<more>[.!?…]*[{CLOSING}]*)(?:\\[\\d{{1,3}}\\])*\\s+"
    f"(?={_OPENING}[A-Z0-9À-ÖØ-ÞČĆĐİŁŃŐŒŘŚŞŠŤŮŸŹŻŽА-ЯΑ-Ω{_CHINESE}$€£#¿¡—–])"
    # A blank line; a line break before a bullet or a number.
    r"|(?<=\n)[^\S\n]*\n\s*"
    rf"|(?<=\n)[^\S\n]*(?={_BULLET})"
    ")"
)

_HEADING = re.compile(r"^ {0,3}(?P<mark>#{1,6}[ \t]+\S)[^\n]*\s*", re.MULTILINE)

TITLES = frozenset({
    "Mr", "Mrs", "Ms", "Messrs", "Dr", "Prof", "Rev", "Hon", "Sen", "Rep", "Gov", "Pres",
    "Gen", "Col", "Maj", "Sgt", "Capt", "Cmdr", "Lt", "Mt", "Ft",
})  # fmt: skip
"""Before a name; in lower case several are words."""
JOINING = frozenset({"e.g", "i.e", "cf", "viz", "vs", "approx"})
"""In the middle of a sentence, in any case."""
NUMBERED = frozenset({
    "no", "nos", "fig", "figs", "vol", "vols", "p", "pp", "ch", "sec", "art", "eq", "ref",
    "refs", "ca", "c", "b", "d", "r",
})  # fmt: skip
"""Before a number; several are words."""
DATES = frozenset({
    "Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Sept", "Oct", "Nov", "Dec",
    "Mon", "Tue", "Tues", "Wed", "Thu", "Thurs", "Fri", "Sat", "Sun",
})  # fmt: skip
MAY_END = frozenset({
    "jr", "sr", "st", "ave", "co", "corp", "inc", "ltd", "bros", "dept", "est", "al", "ed", "eds",
    "v",
})  # fmt: skip
"""These, dates and initials (J., U.S., p.m.) end a sentence if a word of STARTERS follows."""

_STARTERS = re.compile(
    rf"{_OPENING}(?:The|This|That|These|Those|There|Then|They|He|She|It|Its|His|Her|Their|We|Our|You"
    "|Your|I|My|In|On|At|As|A|An|And|But|Or|If|When|While|After|Before|However|For|From|With|By|To"
    r"|Not|No|So|What|Who|Why|How|Where)\b(?!\.)"
)
_NUMBERED = re.compile(rf"{_OPENING}[#$€£]?(?:\d|[IVXLC]{{2,}}\b)")
_INITIALS = re.compile(r"[A-Z]|(?:[A-Za-z]+\.)+[A-Za-z]")
_LIST_MARK = re.compile(r"\d{1,3}|[A-Za-z]")
_LINE_BULLET = re.compile(_BULLET)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]*$")


def sentence_starts(text: str) -> list[int]:
    """Character offsets of the sentences: 0 first, then ascending, each at a visible character.

    >>> sentence_starts("Dr. Lee came. She left.")
    [0, 14]
    """
    return list(each_start(text))


def each_start(text: str) -> Iterator[int]:
    """The offsets of ``sentence_starts`` one after another: of a long text there are many."""
    place, start = 0, False
    for heading in _HEADING.finditer(text) if "#" in text else ():
        yield from _starts_in(text, place, heading.start("mark"))
        yield heading.start("mark")
        place, start = heading.end(), True
    yield from _starts_in(text, place, len(text))
    if not start and not text:
        yield 0


def _starts_in(text: str, begin: int, end: int) -> Iterator[int]:
    """Starts of the sentences of a part without headings; none if it is empty."""
    if begin >= end:
        return
    yield begin
    last = begin
    for match in _BOUNDARY.finditer(text, begin, end):
        place = match.end()
        if place < end and not (match["more"] == "" and _continues(text, match, last)):
            yield place
            last = place


def _continues(text: str, match: re.Match[str], sentence: int) -> bool:
    """Whether a single mark belongs to an abbreviation, an initial or a list's number.

    sentence: where the sentence that it might end began.
    """
    stop, end = match.start(), match.end()
    if text[stop] != ".":
        return False
    word = _LAST_WORD.search(text, max(sentence, stop - 24), stop)
    if word is None or not word[0]:
        return False
    before, lower = word[0], word[0].lower()
    lines = text.count("\n", stop, end)
    if lines > 1 or (lines and _LINE_BULLET.match(text, end)):
        return False
    if before in TITLES or lower in JOINING:
        return True
    if word.start() == sentence and _LIST_MARK.fullmatch(before):
        return True
    if lower in NUMBERED and _NUMBERED.match(text, end):
        return True
    may_end = before in DATES or lower in MAY_END or _INITIALS.fullmatch(before)
    return bool(may_end) and not _STARTERS.match(text, end)
