"""Evaluate a language model as a classifier that was never finetuned: a template asks, labels
written behind it are the answers, solved examples may stand before (Brown et al. 2020).

The likeliest answer is the prediction; the softmax of the answers' scores are its probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.labelled import Columns, Example, read_examples
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.benchmarks.base import accuracy
from llmctl.evaluation.choices import SCORES, Outcome, Question
from llmctl.formats.columns import labelled_columns
from llmctl.inference.prompts import (
    LABEL,
    PromptRow,
    PromptTemplate,
    Shots,
    find_columns,
    read_rows,
    read_template,
    write_prompts,
)
from llmctl.inference.scoring import Scorer, encode_query, fitted
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.benchmarks import ask
from llmctl.tasks.classify.evaluate import ClassTable, joined, options_for, probabilities
from llmctl.tasks.evaluation import EvaluateConfig, Given, Report, Subject
from llmctl.tasks.training_data import seen_in_training, training_examples


@dataclass(frozen=True)
class _Asked:
    """The questions of a file."""

    template: PromptTemplate
    rows: list[PromptRow]
    labels: list[str]
    gold: NDArray[np.int64]
    """The number of each row's label."""


def prompt_report(given: Given, config: EvaluateConfig, reporter: Reporter) -> Report:
    """The rows of a file, asked by a template."""
    assert given.template is not None
    template = read_template(given.template)
    solved = _solved(given, template, config, reporter)
    asked = _asked(given, template, solved, config, reporter)
    shots = Shots(template, solved, config.seed)
    table = ClassTable(asked.gold, asked.labels, config)
    notes: list[str] = []
    ways: dict[str, dict[str, Any]] = {}
    for name, subject in given.subjects.items():
        if not subject.is_language_model:
            examples = _examples(given, subject, asked, config, reporter)
            assert given.data is not None
            notes += seen_in_training(subject.finetuned, given.data)
            table.add(name, probabilities(subject, examples, asked.labels, config.device, notes))
            continue
        scorer = subject.scorer(config.device, config.dtype)
        for count in config.shots:
            row = _row_name(name, count)
            outcomes = _answers(subject, scorer, count, asked, shots, reporter, notes)
            by_way = {way: _probabilities(outcomes, way) for way in SCORES}
            table.add(row, by_way[config.score])
            ways[row] = {way: accuracy(p.argmax(-1) == asked.gold) for way, p in by_way.items()}
    if config.baselines:
        notes += _add_baselines(table, given, asked, solved, config)
    for note in notes:
        reporter.note(note)
    best = _row_name("model", max(config.shots))
    return {
        "task": "prompt",
        "data": str(given.data),
        "template": str(given.template),
        "examples": len(asked.rows),
        "labels": asked.labels,
        "shots": list(config.shots),
        "score": config.score,
        "chance": 1 / len(asked.labels),
        "results": table.rows,
        "by_score": ways,
        "row": best,
        "differences": table.differences(best),
        "notes": notes,
        "summary": {
            "accuracy": table.rows[best]["accuracy"],
            "macro_f1": table.rows[best]["macro_f1"],
        },
    }


def _row_name(name: str, count: int) -> str:
    return f"{name}, {count} shot{'' if count == 1 else 's'}"


def _rows(
    path: Path, template: PromptTemplate, config: EvaluateConfig, reporter: Reporter
) -> tuple[list[PromptRow], Columns]:
    """The labelled rows of a file. Raises InputError if there are none."""
    reading = config.read_config().read_options(reporter.note)
    columns = find_columns(
        path,
        template,
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        label_column=config.label_column,
        need_label=True,
        reading=reading,
    )
    reporter.note(f"{path.name}: {columns.describe()}")
    rows = list(read_rows(path, template, columns, reading=reading))
    if not rows:
        raise InputError(f"{path} has no rows; give a file with examples")
    return rows, columns


def _solved(
    given: Given, template: PromptTemplate, config: EvaluateConfig, reporter: Reporter
) -> list[PromptRow]:
    """The rows of ``--examples``. Raises UsageError if they are needed and not given."""
    if given.examples is None:
        if any(config.shots):
            raise UsageError(
                f"--shots {max(config.shots)}: give the file that examples are drawn from, "
                "--examples FILE"
            )
        return []
    return _rows(given.examples, template, config, reporter)[0]


def _asked(
    given: Given,
    template: PromptTemplate,
    solved: Sequence[PromptRow],
    config: EvaluateConfig,
    reporter: Reporter,
) -> _Asked:
    assert given.data is not None
    rows, columns = _rows(given.data, template, config, reporter)
    leaks = sorted(template.input_fields & {LABEL, columns.label})
    if leaks:
        raise UsageError(
            f"--template {template.path}: the input asks for {leaks[0]}, which is what is to be "
            "told; write it in the target alone"
        )
    found = sorted({row.label or "" for row in (*rows, *solved)})
    classifier = _classifier(given)
    known = list(template.verbalizer) or (classifier and classifier.neural.labels)
    labels = known or found
    if len(labels) < 2:
        raise InputError(
            f"{given.data} has one label only ({labels[0]!r}), so there is nothing to choose from; "
            "name all of them in the template's [verbalizer]"
        )
    if classifier is not None and (unknown := sorted({*found} - {*labels})):
        raise InputError(
            f"{given.data} has labels that {classifier.name} does not know "
            f"({', '.join(unknown[:5])}); it knows {', '.join(labels[:10])}"
        )
    for row in (*rows, *solved):
        answers = [template.answer(row, label) for label in (row.label, *labels)]
        if len(set(answers)) < len(labels):
            raise InputError(
                f"{row.source}: --template {template.path} writes two labels alike "
                f"({answers[0]!r}); put {{{{ label }}}} into its target, and a word for each into "
                "its [verbalizer]"
            )
    number_of = {label: number for number, label in enumerate(labels)}
    return _Asked(template, rows, labels, np.array([number_of[row.label or ""] for row in rows]))


def _answers(
    subject: Subject,
    scorer: Scorer,
    count: int,
    asked: _Asked,
    shots: Shots,
    reporter: Reporter,
    notes: list[str],
) -> list[Outcome]:
    """What a model makes of each row with so many examples before it."""
    template, tokenizer = asked.template, subject.tokenizer
    shown = _row_name(subject.name, count)

    def choices(row: PromptRow) -> tuple[str, ...]:
        return tuple(template.answer(row, label) for label in asked.labels)

    def fits(row: PromptRow, prompt: str) -> bool:
        return not fitted(encode_query(tokenizer, prompt, choices(row)), scorer.longest)[1]

    prompts = list(write_prompts(template, asked.rows, shots, count, fits))
    questions = [
        Question(prompt.text, choices(prompt.row), gold, template.prior, prompt.row.source)
        for prompt, gold in zip(prompts, asked.gold.tolist(), strict=True)
    ]
    dropped = [prompt.dropped for prompt in prompts]
    outcomes, cut = [], 0
    for outcome, lost in ask(scorer, tokenizer, questions):
        outcomes.append(outcome)
        cut += lost > 0
        reporter.progress(f"prompts to {shown}", len(outcomes), len(questions))
    if any(dropped):
        notes.append(
            f"{shown}: in {np.count_nonzero(dropped):,} of {len(questions):,} prompts not all "
            f"examples fit into the {scorer.longest} tokens that the model reads at once; there "
            f"are {count - np.mean(dropped):.1f} on average"
        )
    if cut:
        notes.append(
            f"{shown}: {cut:,} of {len(questions):,} prompts are longer even without examples than "
            f"the {scorer.longest} tokens that the model reads at once, and lost their beginning"
        )
    return outcomes


def _probabilities(outcomes: Sequence[Outcome], way: str) -> NDArray[np.float64]:
    scores = np.array([SCORES[way](outcome) for outcome in outcomes])
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def _classifier(given: Given) -> Subject | None:
    """The first classifier that the model is compared with."""
    return next((s for s in given.others.values() if not s.is_language_model), None)


def _examples(
    given: Given, subject: Subject, asked: _Asked, config: EvaluateConfig, reporter: Reporter
) -> list[Example]:
    """The same rows for a classifier, with the columns of its finetuning. Raises InputError if
    they have other labels there."""
    assert given.data is not None
    options = options_for(config)
    reading = config.read_config(subject.finetuned.options).read_options(reporter.note)
    resolved = labelled_columns(
        subject.finetuned,
        given.data,
        options,
        need_label=True,
        reading=reading,
        note=lambda text: reporter.note(f"{subject.name}: {text}"),
    )
    examples = list(read_examples(given.data, resolved, reading=reading))
    if [example.label for example in examples] != [row.label for row in asked.rows]:
        raise InputError(
            f"{given.data} has other labels by the columns that {subject.name} was finetuned with "
            f"({resolved.describe()}); give --text-column and --label-column"
        )
    return examples


def _add_baselines(
    table: ClassTable,
    given: Given,
    asked: _Asked,
    solved: Sequence[PromptRow],
    config: EvaluateConfig,
) -> list[str]:
    """What is simpler, trained on the examples of prompts or on what a classifier beside it was."""
    number_of = {label: number for number, label in enumerate(asked.labels)}
    template = asked.template
    if solved:
        texts, train_texts = ([template.question(r) for r in rows] for rows in (asked.rows, solved))
        train_labels = [row.label or "" for row in solved]
    else:
        classifier = _classifier(given)
        if classifier is None:
            return ["baselines left out: give what they are trained on, --examples FILE"]
        notes: list[str] = []
        data = training_examples(classifier.finetuned, notes)
        if data is None:
            return notes
        examples = _examples(given, classifier, asked, config, Reporter())
        texts = [joined(example) for example in examples]
        train_texts = [joined(example) for example in data.trained]
        train_labels = [example.label or "" for example in data.trained]
    numbers = np.array([number_of[label] for label in train_labels])
    return table.add_baselines(texts, train_texts, numbers)
