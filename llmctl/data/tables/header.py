"""Whether the first row of a table names its columns or is an example.

Told by what stands in the file. If the first row were an example it would be like the others, and
in a file of n + 1 rows it would be the odd one, by chance, once in n + 1 times: its label one that
no other row has, its text one word where all others are sentences, a word where all others are
numbers. So a header is a row that could name columns, and that is odd by a chance of 1 in 20 or
less; and a row whose label comes again below is none, whatever it is called. Rows that follow at
once must not be odd in the same way: in a file that is sorted, the odd ones stand together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ODDITY_CHANCE = 0.05
"""At most so often an example is as odd as a first row that is taken for a header."""
NEAR = 5
"""Rows after the first that must not be odd in the same way."""
MAX_HEADER_NAME, MOST_WORDS = 64, 8
"""Characters and words of a column's name."""
SHORT_WORD = 8
"""Characters of what may be a word, so that a shorter one beside it isn't odd."""

_NUMERIC = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?%?")
_ENDS = (".", "!", "?", "…", ":", ";", ",", "。", "！", "？", '"', "”")
"""What sentences end with, and names of columns do not."""


@dataclass(frozen=True)
class Verdict:
    """Whether a first row is a header, and whether that is plain."""

    is_header: bool
    certain: bool


def judge(records: Sequence[Sequence[str]], known: frozenset[str]) -> Verdict:
    """Whether the first of some rows names the columns of the others.

    known: names, in lower case, that columns often have.
    """
    first = [cell.strip() for cell in records[0]]
    rows = [[cell.strip() for cell in row] for row in records[1:] if len(row) == len(first)]
    again = first in rows
    rows = [row for row in rows if row != first]  # as where files were put together
    by_name = sum(cell.lower() in known for cell in first)
    if not rows:
        return Verdict(by_name > 0, certain=True)
    columns = list(zip(first, zip(*rows, strict=True), strict=True))
    if _numbered(first) and any(not any(map(_is_number, cells)) for _, cells in columns):
        return Verdict(is_header=True, certain=False)
    if any(_comes_again(cell, cells) for cell, cells in columns):
        return Verdict(is_header=False, certain=by_name == 0)
    odd = not again and _is_odd(columns, len(rows))
    if all(map(_could_name, first)) and any(first):
        if by_name:
            return Verdict(True, certain=odd or by_name > 1 or by_name == len(first))
        return Verdict(odd, certain=not odd)
    return Verdict(odd and by_name > 0, certain=by_name == 0 and not odd)


def _numbered(first: Sequence[str]) -> bool:
    """Whether a row is 0, 1, 2, …, as columns without names are written, behind an index or not."""
    numbers = [*first[1:]] if first[0] == "" else [*first]
    return len(numbers) > 1 and numbers == [str(n) for n in range(len(numbers))]


def _could_name(cell: str) -> bool:
    """Whether a cell could be a column's name; a column may have none."""
    return (
        len(cell) <= MAX_HEADER_NAME
        and "\n" not in cell
        and len(cell.split()) <= MOST_WORDS
        and not cell.endswith(_ENDS)
        and not _is_number(cell)
    )


def _is_number(cell: str) -> bool:
    return _NUMERIC.fullmatch(cell) is not None


def _comes_again(cell: str, cells: Sequence[str]) -> bool:
    """Whether a cell comes again in a column in which values usually do."""
    if not cell or cell not in cells:
        return False
    count = Counter((cell, *cells))
    return sum(n for n in count.values() if n > 1) * 2 >= len(cells) + 1


def _is_odd(columns: Sequence[tuple[str, Sequence[str]]], rows: int) -> bool:
    """Whether the first row is unlike the others beyond what chance allows."""
    shares: list[float] = []
    for cell, cells in columns:
        if not cell:
            continue
        filled = [other for other in cells if other]
        if not _is_number(cell) and len(filled) > 1 and all(map(_is_number, filled)):
            return True  # no example has a word where there are numbers only
        shares.append(min((1 + odd) / (1 + rows) for odd in _as_odd(cell, cells)))
    alone = [share for share in shares if share * (1 + rows) == 1]
    return min(shares, default=1.0) <= ODDITY_CHANCE or (1 + rows) ** -len(alone) <= ODDITY_CHANCE


def _as_odd(cell: str, cells: Sequence[str]) -> list[int]:
    """For each way of being odd, how many of a column's other cells are so too; all of them where
    the cell itself isn't, or where one of the next rows is."""
    count = Counter(cells)
    ways: list[tuple[bool, Callable[[str], bool]]] = [
        (cell not in count, lambda other: count[other] == 1),
        (len(cell.split()) == 1, lambda other: len(other.split()) <= 1),
        (not cell.endswith(_ENDS), lambda other: not other.endswith(_ENDS)),
        (True, lambda other: len(other) < max(2 * len(cell), SHORT_WORD)),
    ]
    odd = []
    for is_odd, test in ways:
        if not is_odd or any(map(test, cells[:NEAR])):
            odd.append(len(cells))
        else:
            odd.append(sum(map(test, cells)))
    return odd
