"""Minimal pairs (BLiMP, Warstadt et al. 2020): of two sentences that differ in one thing, the
grammatical one should be the likelier.

Sentences are scored whole, from the start of a document, without its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.data.tables.rows import TableRow
from llmctl.evaluation.benchmarks.base import Benchmark, Bools, by_score, text_of
from llmctl.evaluation.choices import ChoiceScores, Question

GOOD, BAD = "sentence_good", "sentence_bad"


def _question(row: TableRow) -> Question:
    return Question("", (text_of(row, GOOD), text_of(row, BAD)), 0, None, row.source)


def _correct(questions: Sequence[Question], outcomes: Sequence[ChoiceScores]) -> dict[str, Bools]:
    # Pairs are matched in length as it is: BLiMP knows the plain score only.
    return {"plain": by_score(questions, outcomes)["plain"]}


MINIMAL_PAIRS = Benchmark(
    name="blimp",
    described="prefer the grammatical sentence of two",
    layouts={frozenset((GOOD, BAD)): _question},
    correct=_correct,
)
