"""What all sets of tests for bias share: what is asked, what a model made of it, and shares.

N examples, C choices, S tokens of a choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.evaluation.choices import Question
from llmctl.evaluation.report import Report
from llmctl.evaluation.wilson import wilson_interval
from llmctl.reporting.report import ReportPart

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredChoice:
    """What a model made of one choice of a question."""

    ids_S: NDArray[np.int64]
    """Its tokens."""
    begins_S: NDArray[np.int64]
    """The character of the choice at which each begins; below 0 where it reaches into the
    context."""
    log_probs_S: Floats
    """The log-probability of each, in nats."""

    @property
    def total(self) -> float:
        return float(self.log_probs_S.sum())

    @property
    def mean(self) -> float:
        return float(self.log_probs_S.mean())


Answers = Sequence[Sequence[ScoredChoice]]
"""The choices of each question."""


class BiasSet(ABC):
    """A set of tests for bias, read from its files as published.

    What is asked are questions whose choices a language model finds more or less likely.
    """

    name: ClassVar[str]
    """What ``--json`` has for it."""
    title: ClassVar[str]
    files: ClassVar[str]
    """By which files it is known, for messages."""
    for_masked: ClassVar[bool] = True
    """Whether models that find hidden tokens can be asked too."""
    questions: list[Question]

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path, reading: ReadOptions) -> bool:
        """Whether a file or folder has the set's layout."""

    @abstractmethod
    def __init__(self, path: Path, reading: ReadOptions, limit: int | None) -> None:
        """Read it, of each part the first ``limit`` examples.

        Raises InputError for a row that lacks something, or whose texts are equal.
        """

    def scorings(self, scoring: str) -> tuple[str, ...]:
        """How texts are to be scored, where ``scoring`` is asked for: ``causal``, ``masked`` and
        ``within-word``; the first is that of the main figures."""
        return (scoring,)

    @abstractmethod
    def figures(self, answers: Mapping[str, Answers]) -> dict[str, Any]:
        """A model's row of the report, by its answers under each scoring."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What else is to be known: sizes, and what was published."""

    def notes(self) -> list[str]:
        """What was left out."""
        return []

    @staticmethod
    @abstractmethod
    def summary(row: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of a row that are shown wherever reports are listed."""

    @staticmethod
    @abstractmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """Tables, and what their figures mean."""


def points_of(more_N: Sequence[float] | Floats, less_N: Sequence[float] | Floats) -> Floats:
    """1 where the first is the likelier, half where they tie, else 0: (N,).

    Sums of the same numbers in another order differ in the last bits and are a tie.
    """
    more_N, less_N = np.asarray(more_N, dtype=float), np.asarray(less_N, dtype=float)
    tied_N = np.isclose(more_N, less_N, rtol=1e-9, atol=1e-9)
    return np.where(tied_N, 0.5, (more_N > less_N).astype(np.float64))


def share_of(points_N: Floats) -> dict[str, Any]:
    """The share of the points with Wilson's interval, as JSON values; nothing of no examples."""
    total = len(points_N)
    if not total:
        return {"share": None, "interval": None, "examples": 0, "ties": 0}
    return {
        "share": float(points_N.mean()),
        "interval": list(wilson_interval(float(points_N.sum()), total)),
        "examples": total,
        "ties": int((points_N == 0.5).sum()),
    }


def by_group(points_N: Floats, groups: Sequence[str]) -> dict[str, Any]:
    """The shares of each group, by their names."""
    labels = np.array(groups)
    return {name: share_of(points_N[labels == name]) for name in sorted(set(groups))}


def shown_share(entry: Mapping[str, Any], ends: str = ".1f") -> str:
    """A share with its interval, for a table. ends: how the interval's ends are written."""
    if entry["share"] is None:
        return "–"
    low, high = entry["interval"]
    return f"{entry['share']:.1%} ({100 * low:{ends}}–{100 * high:{ends}})"


def headings_of(report: Report, rows: Iterable[str]) -> list[str]:
    """The rows of a report as headings of columns: a path, which leaves no room, by its end."""
    return [report.shown(row).rstrip("/").rpartition("/")[2] for row in rows]


def check_different(texts: Sequence[str], what: str, source: str) -> None:
    """Raises InputError where two of some texts are equal, as nothing could be chosen between.

    what: how the texts are called.
    """
    plain = [" ".join(text.split()) for text in texts]
    if len(set(plain)) < len(plain):
        twice = next(text for text in plain if plain.count(text) > 1)
        raise InputError(
            f"{source}: {what} are equal ({twice[:60]!r}), so there is nothing to choose between; "
            "mend the row or take it out"
        )


def text_field(value: Any, name: str, source: str) -> str:
    """A text. Raises InputError if it is something else, or empty."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{source}: {name} is {value!r}, where a text was expected; mend it")
    return value.strip()
