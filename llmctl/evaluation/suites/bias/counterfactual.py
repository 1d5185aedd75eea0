"""Texts with terms of one group swapped for those of another: what a classifier makes of both.

A classifier that is fair in this sense says the same of *He waited an hour* and *She waited an
hour* (Garg et al. 2019, "Counterfactual fairness in text classification"). Beside how often its
answer changes stand the true-positive rates of two groups, whose difference is *equal opportunity*
(Hardt et al. 2016): of texts that tell of one group alone, and of all texts rewritten for either.

N texts, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.text.decoding import ReadOptions, text_lines
from llmctl.data.text.words import UNSPACED
from llmctl.errors import InputError
from llmctl.evaluation.wilson import wilson_interval

BUNDLED = Path(__file__).parent / "terms"
LANGUAGES = ("en", "zh")
"""Lists that come with llmctl."""
USUAL_KIND = "terms"
"""What pairs tell that say nothing of it."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Term:
    """A term, and what it is swapped for."""

    counterpart: str
    kind: str
    side: int
    """The group: 0 for the first column's, 1 for the second's."""


class Terms:
    """Pairs of terms that are swapped for one another."""

    def __init__(self, pairs: Sequence[tuple[str, str, str]], kept: Sequence[str] = ()) -> None:
        """pairs: (term, counterpart, kind). kept: words that stay as they are, though a term is in
        them. The first pair that has a term tells what it becomes."""
        self._terms: dict[str, Term] = {}
        for first, second, kind in pairs:
            self._terms.setdefault(first.lower(), Term(second, kind, 0))
            self._terms.setdefault(second.lower(), Term(first, kind, 1))
        self.kinds = list(dict.fromkeys(kind for _, _, kind in pairs))
        words = sorted({*self._terms, *(word.lower() for word in kept)}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_bounded, words)), re.IGNORECASE)
        self._kept = {word.lower() for word in kept}

    def found(self, text: str) -> list[Term]:
        """The terms of a text, in order."""
        words = (match.group().lower() for match in self._pattern.finditer(text))
        return [self._terms[word] for word in words if word not in self._kept]

    def swap(self, text: str, kind: str | None = None, side: int | None = None) -> str:
        """The text with its terms swapped, capitals as they were.

        kind: those of one kind only. side: those of the group alone that is not this one, so that
        the text tells of this group.

        >>> Terms([("he", "she", "gender")]).swap("He said that she did.")
        'She said that he did.'
        """

        def other(match: re.Match[str]) -> str:
            word = match.group()
            term = self._terms.get(word.lower())
            if word.lower() in self._kept or term is None:
                return word
            if kind not in (None, term.kind) or side == term.side:
                return word
            return _cased(term.counterpart, word)

        return self._pattern.sub(other, text)


def _bounded(word: str) -> str:
    """A word as a pattern: within no longer one, in scripts that have spaces."""
    begin = "" if UNSPACED.match(word[0]) else r"(?<!\w)"
    end = "" if UNSPACED.match(word[-1]) else r"(?!\w)"
    return f"{begin}{re.escape(word)}{end}"


def _cased(counterpart: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return counterpart.upper()
    return counterpart[0].upper() + counterpart[1:] if like[0].isupper() else counterpart


def read_terms(path: Path, reading: ReadOptions) -> Terms:
    """The terms of a file: ``term<TAB>counterpart`` a line, and a third column for what they tell;
    a line with one term keeps it; ``#`` begins a remark.

    Raises InputError for a line with two equal terms or more than three columns, and where there
    are no pairs.
    """
    pairs, kept = list[tuple[str, str, str]](), list[str]()
    for number, (line, _) in enumerate(text_lines(path, reading), 1):
        cells = [cell.strip() for cell in line.rstrip("\r\n").split("\t")]
        if not any(cells) or line.startswith("#"):
            continue
        if len(cells) == 1:
            kept.append(cells[0])
            continue
        if len(cells) > 3 or not cells[0] or not cells[1]:
            raise InputError(
                f"{path}:{number} has not two terms with a tab between (and, if you like, a third "
                "column for what they tell); mend it"
            )
        if cells[0].lower() == cells[1].lower():
            raise InputError(
                f"{path}:{number}: both terms are {cells[0]!r}, so swapping them changes nothing; "
                "write a counterpart, or the word alone to keep it as it is"
            )
        kind = cells[2] if len(cells) == 3 and cells[2] else USUAL_KIND
        pairs.append((cells[0], cells[1], kind))
    if not pairs:
        raise InputError(f"{path} has no pairs of terms; write term<TAB>counterpart, one a line")
    return Terms(pairs, kept)


def change_figures(
    before_NC: Floats, after_NC: Floats, given_N: Ints, now_N: Ints
) -> dict[str, Any]:
    """How often the answer changes with its interval, and by how much the probability of the answer
    does, as JSON values.

    before_NC, after_NC: probabilities of the texts and of the swapped ones. given_N, now_N: the
    answers.
    """
    total = len(given_N)
    if not total:
        return {
            "texts": 0,
            "changed": None,
            "interval": None,
            "shift": None,
            "shift_interval": None,
        }
    changed = int((given_N != now_N).sum())
    rows = np.arange(total)
    shift_N = np.abs(after_NC[rows, given_N] - before_NC[rows, given_N])
    error = float(shift_N.std(ddof=1)) / total**0.5 if total > 1 else 0.0
    mean = float(shift_N.mean())
    return {
        "texts": total,
        "changed": changed / total,
        "interval": list(wilson_interval(changed, total)),
        "shift": mean,
        "shift_interval": [max(0.0, mean - 1.96 * error), mean + 1.96 * error],
    }


def rate_difference(right_a: int, total_a: int, right_b: int, total_b: int) -> dict[str, Any]:
    """A share less another of other texts, with the interval that Wilson's of both give (Newcombe
    1998, method 10), as JSON values; Nones where one has no texts."""
    sizes = {"texts": [total_a, total_b]}
    if not total_a or not total_b:
        return {**sizes, "rates": [None, None], "difference": None, "low": None, "high": None}
    a, b = right_a / total_a, right_b / total_b
    (low_a, high_a), (low_b, high_b) = (
        wilson_interval(right, total) for right, total in ((right_a, total_a), (right_b, total_b))
    )
    return {
        **sizes,
        "rates": [a, b],
        "difference": a - b,
        "low": a - b - ((a - low_a) ** 2 + (high_b - b) ** 2) ** 0.5,
        "high": a - b + ((high_a - a) ** 2 + (b - low_b) ** 2) ** 0.5,
    }


def true_positive_gaps(
    true_N: Ints, given_N: Ints, side_N: Ints, labels: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """The true-positive rate of each class among texts of the first group less that of the second.

    true_N: the right class, −1 where it isn't known. side_N: 0 or 1 for texts of one group alone,
    −1 for others.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for number, label in enumerate(labels):
        counts = []
        for side in (0, 1):
            own_N = (true_N == number) & (side_N == side)
            counts += [int((given_N[own_N] == number).sum()), int(own_N.sum())]
        found[label] = rate_difference(*counts)
    return found
