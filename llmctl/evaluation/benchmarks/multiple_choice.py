"""Multiple choice: a question, and the answers written behind it.

Prompts are those of EleutherAI's evaluation harness, so that figures compare with published ones:
HellaSwag's endings follow their cleaned context; PIQA's and ARC's answers follow
``Question: …\\nAnswer:``. A plain layout has ``query``, ``choices`` and ``gold``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.data.tables.rows import TableRow
from llmctl.errors import InputError
from llmctl.evaluation.benchmarks.base import Benchmark, by_score, number_of, text_of
from llmctl.evaluation.choices import Question

ASKED = "Answer:"
"""The end of a prompt; alone it is what the unconditional prior of an answer is behind."""


def _plain(row: TableRow) -> Question:
    choices = _texts(row, "choices", row.values.get("choices"))
    return _ask(row, text_of(row, "query"), choices, number_of(row, "gold", len(choices)), "")


def _hellaswag(row: TableRow) -> Question:
    endings = _texts(row, "endings", row.values.get("endings"))
    context = text_of(row, "ctx")
    if {"activity_label", "ctx_a", "ctx_b"} <= row.values.keys():
        second = str(row.values["ctx_b"] or "").capitalize()
        context = f"{text_of(row, 'activity_label')}: {text_of(row, 'ctx_a')} {second}"
    return _ask(
        row,
        _cleaned(context),
        [_cleaned(ending) for ending in endings],
        number_of(row, "label", len(endings)),
        "",
    )


def _piqa(row: TableRow) -> Question:
    solutions = [text_of(row, "sol1"), text_of(row, "sol2")]
    prompt = f"Question: {text_of(row, 'goal')}\n{ASKED}"
    return _ask(row, prompt, solutions, number_of(row, "label", 2), ASKED)


def _arc(row: TableRow) -> Question:
    """With the choices beside the question, as Hugging Face has it, or in it, as published."""
    question, choices = row.values.get("question"), row.values.get("choices")
    if isinstance(question, dict):
        choices = question.get("choices")
        question = question.get("stem")
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        choices = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    if not isinstance(question, str) or not isinstance(choices, dict):
        raise InputError(
            f"{row.source}: no question with choices of text and label was found; write them as "
            "ARC does"
        )
    texts = _texts(row, "choices", choices.get("text"))
    labels = [str(label) for label in choices.get("label") or ()]
    key = str(row.values.get("answerKey"))
    if key not in labels or len(labels) != len(texts):
        raise InputError(
            f"{row.source}: answerKey {key!r} is none of the labels {', '.join(labels)}; mend it"
        )
    return _ask(row, f"Question: {question}\n{ASKED}", texts, labels.index(key), ASKED)


def _ask(row: TableRow, context: str, choices: Sequence[str], gold: int, prior: str) -> Question:
    spaced = tuple(choice if choice[:1].isspace() else f" {choice}" for choice in choices)
    return Question(context, spaced, gold, prior, row.source)


def _texts(row: TableRow, name: str, value: Any) -> list[str]:
    """Raises InputError unless it is a list of two texts or more."""
    if (
        not isinstance(value, list)
        or len(value) < 2
        or not all(isinstance(text, str) and text.strip() for text in value)
    ):
        raise InputError(f"{row.source}: {name} is no list of two texts or more; mend it")
    return value


def _cleaned(text: str) -> str:
    """Without the marks of the web pages that HellaSwag is from."""
    text = "\n".join(map(_unbracketed, text.strip().replace(" [title]", ". ").split("\n")))
    return text.replace("  ", " ").strip()


def _unbracketed(line: str) -> str:
    """A line without what stands in square brackets.

    Not by a regular expression, which looks for the end of each bracket that has none.
    """
    kept, place = [], 0
    while (begin := line.find("[", place)) >= 0 and (end := line.find("]", begin)) >= 0:
        kept.append(line[place:begin])
        place = end + 1
    return "".join([*kept, line[place:]])


MULTIPLE_CHOICE = Benchmark(
    name="multiple-choice",
    described="choose the right answer",
    layouts={
        frozenset(("query", "choices", "gold")): _plain,
        frozenset(("ctx", "endings", "label")): _hellaswag,
        frozenset(("goal", "sol1", "sol2", "label")): _piqa,
        frozenset(("question", "answerKey")): _arc,
    },
    correct=by_score,
)
