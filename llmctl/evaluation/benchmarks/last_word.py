"""The last word of a passage (LAMBADA, Paperno et al. 2016), which only the whole of it tells.

Right is what greedy decoding would write: each token of the word is the likeliest. Nobody guesses
a word by chance, so there is no chance level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmctl.data.tables.rows import TableRow
from llmctl.errors import InputError
from llmctl.evaluation.benchmarks.base import Benchmark, Bools, text_of
from llmctl.evaluation.choices import ChoiceScores, Question


def _question(row: TableRow) -> Question:
    text = text_of(row, "text").strip()
    # Not by a regular expression, which looks at a long row of spaces from each of them.
    passage, *word = text.rsplit(maxsplit=1)
    if not word:
        raise InputError(f"{row.source}: {text[:40]!r} is one word; give a passage")
    return Question(passage, (text[len(passage) :],), 0, None, row.source)


def _correct(questions: Sequence[Question], outcomes: Sequence[ChoiceScores]) -> dict[str, Bools]:
    return {"greedy": np.array([outcome.greedy for outcome in outcomes], dtype=bool)}


LAST_WORD = Benchmark(
    name="lambada",
    described="write the last word of a passage",
    layouts={frozenset(("text",)): _question},
    correct=_correct,
    obvious=False,  # any table of texts has such a column
    greedy=True,
)
