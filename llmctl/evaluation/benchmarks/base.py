"""What the tasks for language models share: rows as questions, and accuracy with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.rows import TableRow
from llmctl.errors import InputError
from llmctl.evaluation.choices import SCORES, ChoiceScores, Question, is_right
from llmctl.evaluation.wilson import wilson_interval

Bools = NDArray[np.bool_]
ReadRow = Callable[[TableRow], Question]


@dataclass(frozen=True)
class Benchmark:
    """A way of asking a language model."""

    name: str
    described: str
    """What a model has to do."""
    layouts: Mapping[frozenset[str], ReadRow]
    """Columns by which rows are known, and how to read them."""
    correct: Callable[[Sequence[Question], Sequence[ChoiceScores]], dict[str, Bools]]
    """From what a model made of the questions to which it got right, by each way of choosing."""
    obvious: bool = True
    """Whether the columns alone tell that the task is meant."""
    greedy: bool = False
    """Whether it asks what greedy decoding would write."""

    def layout(self, columns: Sequence[str]) -> ReadRow | None:
        """How to read rows with these columns; None if they are not this task's."""
        return next((read for names, read in self.layouts.items() if names <= set(columns)), None)


def accuracy(correct_N: Bools) -> dict[str, Any]:
    """The share that is right, with Wilson's interval, as JSON values."""
    right, total = int(correct_N.sum()), len(correct_N)
    return {"accuracy": right / total, "interval": list(wilson_interval(right, total))}


def by_score(questions: Sequence[Question], outcomes: Sequence[ChoiceScores]) -> dict[str, Bools]:
    """Which questions are answered right, by each score that all of them have."""
    pairs = list(zip(questions, outcomes, strict=True))
    correct = {}
    for name, score in SCORES.items():
        scores = [score(outcome) for outcome in outcomes]
        if any(entry is None for entry in scores):
            continue
        correct[name] = np.array(
            [
                is_right(entry, question.gold)
                for entry, (question, _) in zip(scores, pairs, strict=True)
                if entry is not None
            ]
        )
    return correct


def chance(questions: Sequence[Question]) -> float | None:
    """Accuracy of guessing; None where there is nothing to choose from."""
    if any(len(question.choices) < 2 for question in questions):
        return None
    return float(np.mean([1 / len(question.choices) for question in questions]))


def text_of(row: TableRow, name: str) -> str:
    """A text of a row. Raises InputError if it is something else, or empty."""
    value = row.values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{row.source}: {name} is {value!r}, where a text was expected; mend it")
    return value


def number_of(row: TableRow, name: str, count: int) -> int:
    """A row's right answer by its number from 0. Raises InputError if it is none."""
    value = row.values.get(name)
    digits = str(value).strip().removesuffix(".0")
    if isinstance(value, bool) or not digits.isdecimal() or int(digits) >= count:
        raise InputError(
            f"{row.source}: {name} is {value!r}, which is none of the {count} answers "
            f"(0 … {count - 1}); use a part of the data whose answers are public"
        )
    return int(digits)
