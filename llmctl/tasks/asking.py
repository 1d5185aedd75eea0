"""Asking a model about the rows of a table by a template: which of the labels' words is likeliest.

What a model makes of a word is its asker's: behind a prompt for a language model, at a mask for a
masked one. N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import InputError
from llmctl.evaluation.choices import SCORES, ChoiceScores, Question
from llmctl.evaluation.wilson import wilson_interval
from llmctl.inference.prompts import Shots, write_prompts
from llmctl.inference.templates import PromptRow, PromptTemplate
from llmctl.reporting.reporter import Reporter

ROWS_AHEAD = 256
"""Rows that are asked together, by predictions that stream."""


class Asker(Protocol):
    """A model that says how likely words are in a prompt."""

    longest: int | None
    """Tokens that it reads at once; None: any number."""
    cuts: str
    """What a prompt that is too long loses, for a message."""

    def check(self, template: PromptTemplate) -> None:
        """Raises InputError for a template that is of another kind."""
        ...

    def fits(self, prompt: str, choices: Sequence[str]) -> bool:
        """Whether a prompt can be read whole with any of the choices."""
        ...

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[ChoiceScores, int]]:
        """What the model makes of each question, and the tokens that its context lost to fit."""
        ...


@dataclass(frozen=True)
class Asked:
    """The questions of a file."""

    template: PromptTemplate
    rows: list[PromptRow]
    solved: list[PromptRow]
    """Rows of ``--examples``, from which those in prompts are drawn."""
    labels: list[str]

    def numbers(self, labels: Sequence[str | None]) -> NDArray[np.int64]:
        """Labels by their numbers."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        return np.array([number_of[label or ""] for label in labels], dtype=np.int64)

    @property
    def gold(self) -> NDArray[np.int64]:
        """The number of each row's label, (N,)."""
        return self.numbers([row.label for row in self.rows])

    def choices(self, row: PromptRow) -> tuple[str, ...]:
        """The answers that a model chooses from."""
        return tuple(self.template.answer(row, label) for label in self.labels)

    def check_choices(self) -> None:
        """Raises InputError where two labels are written alike, or one isn't known."""
        for row in (*self.rows, *self.solved):
            answers = [self.template.answer(row, row.label), *self.choices(row)]
            if len(set(answers)) < len(self.labels):
                raise InputError(
                    f"{row.source}: --template {self.template.path} writes two labels alike "
                    f"({answers[0]!r}); put {{{{ label }}}} into its target, and a word for each "
                    "into its [verbalizer]"
                )


def answers(
    asker: Asker, shown: str, count: int, asked: Asked, shots: Shots, reporter: Reporter
) -> tuple[list[ChoiceScores], list[str]]:
    """What a model makes of each row with so many examples before it, and notes of what did not
    fit. shown: what it is called."""
    template = asked.template

    def fits(row: PromptRow, prompt: str) -> bool:
        return asker.fits(prompt, asked.choices(row))

    prompts = list(write_prompts(template, asked.rows, shots, count, fits))
    questions = [
        Question(
            prompt.text,
            asked.choices(prompt.row),
            asked.labels.index(prompt.row.label) if prompt.row.label in asked.labels else 0,
            template.prior,
            prompt.row.source,
        )
        for prompt in prompts
    ]
    dropped = [prompt.dropped for prompt in prompts]
    outcomes, cut, notes = list[ChoiceScores](), 0, list[str]()
    for outcome, lost in asker.ask(questions):
        outcomes.append(outcome)
        cut += lost > 0
        reporter.progress(f"prompts to {shown}", len(outcomes), len(questions))
    if any(dropped):
        notes.append(
            f"{shown}: in {np.count_nonzero(dropped):,} of {len(questions):,} prompts not all "
            f"examples fit into the {asker.longest} tokens that the model reads at once; there "
            f"are {count - np.mean(dropped):.1f} on average"
        )
    if cut:
        notes.append(
            f"{shown}: {cut:,} of {len(questions):,} prompts are longer even without examples than "
            f"the {asker.longest} tokens that the model reads at once, and lost {asker.cuts}"
        )
    return outcomes, notes


def probabilities_of(outcomes: Sequence[ChoiceScores], way: str) -> NDArray[np.float64]:
    """The softmax of the answers' scores by one of ``SCORES``, (N, C)."""
    scores = np.array([SCORES[way](outcome) for outcome in outcomes])
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Tried:
    """What a template came to on development rows."""

    template: PromptTemplate
    right: int
    total: int

    def record(self, *, chosen: bool) -> dict[str, Any]:
        """That as JSON values, with Wilson's interval of 95 %."""
        return {
            "template": self.template.file.input,
            "accuracy": self.right / self.total,
            "interval": list(wilson_interval(self.right, self.total)),
            "right": self.right,
            "total": self.total,
            "chosen": chosen,
        }


def search(
    templates: Sequence[PromptTemplate],
    right_of: Callable[[PromptTemplate], NDArray[np.bool_]],
    reporter: Reporter,
) -> tuple[Tried, list[dict[str, Any]]]:
    """The template that gets most of the development rows right, the first of equals, and what
    each came to. right_of: which rows a template gets right."""
    tried = []
    for number, template in enumerate(templates, 1):
        right_N = right_of(template)
        tried.append(Tried(template, int(right_N.sum()), len(right_N)))
        reporter.progress("templates", number, len(templates))
    best = max(tried, key=lambda one: one.right)
    return best, [one.record(chosen=one is best) for one in tried]
