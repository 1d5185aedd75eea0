"""Tags of words and the entities that they spell.

BIO: B begins an entity of its type, I goes on with it, O is outside (Ramshaw and Marcus 1995; the
variant in which every entity begins with B). BIOES says besides where an entity ends, E, and which
are of one word, S; BILOU calls these L and U. Other tags, as those of parts of speech, spell
nothing. Places are those of words, and an end is the place behind the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

OUTSIDE = "O"
Scheme = Literal["BIO", "BIOES", "BILOU", "plain"]
LETTERS: dict[Scheme, str] = {"BIO": "BIIB", "BIOES": "BIES", "BILOU": "BILU"}
"""By scheme: the letters of an entity's first word, one within, the last, and one alone."""
_SAME = {"L": "E", "U": "S"}


class Entity(NamedTuple):
    """Words of a type."""

    begin: int
    end: int
    type: str


class UnknownTags(ValueError):
    """Tags that no scheme allows together; the message names them."""


def parted(tag: str) -> tuple[str, str]:
    """A tag's letter, BILOU's written as BIOES's, and its type; ``O`` has none.

    >>> parted("U-PER")
    ('S', 'PER')
    """
    letter, _, kind = tag.partition("-")
    return (OUTSIDE, "") if tag == OUTSIDE else (_SAME.get(letter, letter), kind)


def spells(tag: str) -> bool:
    """Whether a tag is a letter of a scheme with a type behind it."""
    return len(tag) > 2 and tag[1] == "-" and tag[0] in "BIESLU"


def scheme_of(tags: Iterable[str]) -> Scheme:
    """The scheme of all the tags of a file.

    Raises UnknownTags where some spell entities and others don't, or where letters of BIOES stand
    beside those of BILOU, or one has no type.
    """
    kinds = {*tags} - {OUTSIDE}
    spelling = {tag for tag in kinds if spells(tag)}
    if bare := sorted(tag for tag in kinds if len(tag) == 2 and spells(f"{tag}x")):
        raise UnknownTags(f"the tag {bare[0]!r} names no type, as B-PER does")
    if not spelling:
        return "plain"
    if others := sorted(kinds - spelling):
        raise UnknownTags(
            f"the tag {others[0]!r} is neither {OUTSIDE} nor of the scheme of {min(spelling)!r}"
        )
    letters = {tag[0] for tag in spelling}
    if letters & set("ES") and letters & set("LU"):
        first, second = (min(t for t in spelling if t[0] in part) for part in ("ES", "LU"))
        raise UnknownTags(f"the tags {first!r} and {second!r} are of two schemes, BIOES and BILOU")
    return "BIOES" if letters & set("ES") else "BILOU" if letters & set("LU") else "BIO"


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities of tags however well they are formed, as conlleval reads them (Tjong Kim Sang
    and De Meulder 2003): one goes on where I or E of its type follows its B or I."""
    begin, before = 0, (OUTSIDE, "")
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, kind = parted(tag)
        goes_on = before[0] in "BI" and letter in "IE" and before[1] == kind
        if not goes_on:
            if before[0] != OUTSIDE:
                yield Entity(begin, place, before[1])
            begin = place
        before = letter, kind


def strict_entities(tags: Sequence[str], scheme: Scheme) -> Iterator[Entity]:
    """The entities of tags that are spelt in full by a scheme; others are none."""
    closed = scheme != "BIO"
    place = 0
    while place < len(tags):
        letter, kind = parted(tags[place])
        begin, place = place, place + 1
        if letter == "S" and closed:
            yield Entity(begin, place, kind)
        if letter != "B":
            continue
        while place < len(tags) and parted(tags[place]) in (("I", kind), ("E", kind)):
            place += 1
            if parted(tags[place - 1])[0] == "E" and closed:
                break
        if not closed or (place > begin + 1 and parted(tags[place - 1])[0] == "E"):
            yield Entity(begin, place, kind)


def spelt(found: Iterable[Entity], length: int, scheme: Scheme) -> list[str]:
    """The tags of so many words in which some entities, of which no two overlap, are spelt."""
    first, within, last, alone = tuple(LETTERS[scheme])
    tags = [OUTSIDE] * length
    for begin, end, kind in found:
        inner = [within] * (end - begin - 2)
        letters = [alone] if end == begin + 1 else [first, *inner, last]
        tags[begin:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


def repaired(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Tags with the same entities, well spelt: as BIO's those of 1995, where an entity begins with
    I."""
    return list(tags) if scheme == "plain" else spelt(entities(tags), len(tags), scheme)


def may_follow(before: str | None, tag: str | None, scheme: Scheme) -> bool:
    """Whether a tag may stand behind another in what is well spelt; None: the text's edge."""
    if scheme == "plain":
        return True
    (left, kind), (right, after) = (parted(t) if t else (OUTSIDE, "") for t in (before, tag))
    inside = left in "BI" and left != OUTSIDE
    if right in ("I", "E"):
        return inside and kind == after
    return scheme == "BIO" or not inside
