"""Evaluate a classifier on labelled texts, beside others and what is simpler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.labelled import Columns, Example, read_examples
from llmctl.errors import InputError, UsageError
from llmctl.evaluation import baselines, classification
from llmctl.evaluation.bootstrap import paired_difference
from llmctl.formats.columns import labelled_columns, labelled_record
from llmctl.formats.open import LabelledColumns, cut_in_use, with_label
from llmctl.inference.prediction import BATCH, class_probabilities
from llmctl.objectives.classify import encode_examples, pad_token
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import EvaluateConfig, Given, Report, Subject
from llmctl.tasks.training_data import (
    is_training_file,
    seen_examples,
    seen_in_training,
    training_examples,
)
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device

Probabilities = NDArray[np.float64]


class ClassTable:
    """The rows of a report: what each of several ways of answering gets right."""

    def __init__(
        self, true_N: NDArray[np.int64], labels: Sequence[str], config: EvaluateConfig
    ) -> None:
        self._true, self._labels, self._config = true_N, labels, config
        self.rows: dict[str, dict[str, Any]] = {}
        self.correct: dict[str, NDArray[np.bool_]] = {}

    def add(self, name: str, probabilities_NC: Probabilities) -> None:
        """Another row."""
        self.rows[name] = classification.report(
            probabilities_NC,
            self._true,
            self._labels,
            resamples=self._config.resamples,
            seed=self._config.seed,
        )
        self.correct[name] = probabilities_NC.argmax(-1) == self._true

    def add_baselines(
        self,
        texts: Sequence[str],
        train_texts: Sequence[str],
        train_labels: NDArray[np.int64],
    ) -> list[str]:
        """The majority class and TF-IDF as further rows; returns notes of what was left out."""
        classes = len(self._labels)
        self.add("majority class", baselines.majority(train_labels, classes, len(texts)))
        name = "TF-IDF + logistic regression"
        try:
            probabilities = baselines.tfidf_logistic_regression(
                train_texts, train_labels, texts, classes, self._config.seed
            )
        except UsageError as error:
            return [f"{name} left out: {error}"]
        self.add(name, probabilities)
        return []

    def differences(self, name: str) -> dict[str, Any]:
        """How much more one row gets right than each other."""
        return {
            other: paired_difference(self.correct[name], correct, seed=self._config.seed)
            for other, correct in self.correct.items()
            if other != name
        }


def classifier_report(given: Given, config: EvaluateConfig, reporter: Reporter) -> Report:
    """Labelled texts under a classifier."""
    folder, data = given.subject.neural, given.data
    assert data is not None
    labels = folder.labels or []
    notes: list[str] = []
    read, columns = _same_rows(given, config, reporter)
    examples = read["model"]
    number_of = {label: number for number, label in enumerate(labels)}
    unknown = sorted({e.label or "" for e in examples} - number_of.keys())
    if unknown:
        raise InputError(
            f"{data} has labels that the classifier does not know ({', '.join(unknown[:5])}); "
            f"it knows {', '.join(labels[:10])}"
        )
    true = np.asarray([number_of[example.label or ""] for example in examples])
    table = ClassTable(true, labels, config)
    for name, subject in given.subjects.items():
        found = probabilities(subject, read[name], labels, config.device, notes)
        table.add(name, found)
    # The very file is told by its digest, other files with texts of it by these.
    model = given.subject.finetuned
    unread: list[str] = []
    data_of_training = training_examples(model, unread)
    seen: dict[str, Any] | None = None
    if data_of_training is not None:
        seen, said = seen_examples(model, examples, data_of_training)
        notes += said
    if seen is None or not seen["trained"]:
        notes += seen_in_training(model, data)
    for other in given.others.values():
        notes += seen_in_training(other.finetuned, data)
    if config.baselines:
        notes += unread
        if data_of_training is not None and data_of_training.trained:
            train = data_of_training.trained
            notes += table.add_baselines(
                [joined(example) for example in examples],
                [joined(example) for example in train],
                np.asarray([number_of[example.label or ""] for example in train]),
            )
    for note in notes:
        reporter.note(note)
    rows = table.rows
    return {
        "task": "classify",
        "data": str(data),
        "examples": len(true),
        "columns": {name: labelled_record(taken) for name, taken in columns.items()},
        "training_file": is_training_file(model, data),
        "seen_in_training": seen,
        "results": rows,
        "differences": table.differences("model"),
        "notes": notes,
        "summary": {"accuracy": rows["model"]["accuracy"], "macro_f1": rows["model"]["macro_f1"]},
    }


def _same_rows(
    given: Given, config: EvaluateConfig, reporter: Reporter
) -> tuple[dict[str, list[Example]], dict[str, Columns]]:
    """The same rows of a file for each model, by the columns that it was trained on, and those.

    Rows in which a model would find no text are left out for all. Raises InputError if none are
    left.
    """
    data = given.data
    assert data is not None
    columns: dict[str, Columns] = {}
    read: dict[str, list[Example]] = {}
    reading = config.read_config(given.subject.finetuned.options).read_options(reporter.note)
    for name, subject in given.subjects.items():
        options = options_for(config)
        if columns:  # all are measured by the same labels
            options = options.replace(label_column=columns["model"].label)
        before = f"{subject.name}: " if given.others else ""
        columns[name] = labelled_columns(
            subject.finetuned,
            data,
            options,
            need_label=True,
            reading=reading,
            note=lambda text, before=before: reporter.note(before + text),  # type: ignore[misc]
        )
        same = next((n for n, taken in columns.items() if taken == columns[name]), name)
        read[name] = (
            list(read_examples(data, columns[name], reading=reading))
            if same == name
            else read[same]
        )
    rows = list(zip(*read.values(), strict=True))
    blank = [row[0] for row in rows if not all(example.text for example in row)]
    if blank:
        reporter.note(f"left out {len(blank)} rows without text (the first: {blank[0].source})")
    kept = [row for row in rows if all(example.text for example in row)]
    labelled = with_label([row[0] for row in kept], given.subject.neural.labels or [], reporter)
    sources = {example.source for example in labelled}
    kept = [row for row in kept if row[0].source in sources]
    if not kept:
        raise InputError(f"{data} has no labelled texts")
    return dict(zip(read, map(list, zip(*kept, strict=True)), strict=True)), columns


def probabilities(
    subject: Subject,
    examples: Sequence[Example],
    labels: Sequence[str],
    device: str,
    notes: list[str],
) -> Probabilities:
    """A classifier's probabilities, its classes in the order of ``labels``.

    notes: gets one of texts that were too long.
    """
    folder = subject.neural
    known = folder.labels or []
    if set(known) != set(labels):
        raise InputError(
            f"{folder.path} knows other classes ({', '.join(known[:5])}, …) than the model it is "
            "compared with; compare classifiers of one task"
        )
    model = folder.classifier().to(choose_device(device))
    encoded = encode_examples(folder.tokenizer, examples, folder.max_length, pad=folder.end_padding)
    if cut := sum(example.cut for example in encoded):
        notes.append(f"{subject.name}: {cut_in_use(cut, len(encoded), folder)}")
    pad = pad_token(folder.tokenizer)
    rows = current().divided(
        encoded,
        lambda part, first: class_probabilities(model, list(part), pad).tolist(),
        block=4 * BATCH,
        kind=list[float],
    )
    result = np.asarray(list(rows))
    return result[:, [known.index(label) for label in labels]]


def joined(example: Example) -> str:
    """An example's texts as one."""
    return f"{example.text} {example.text_pair}" if example.text_pair else example.text


def options_for(config: EvaluateConfig) -> LabelledColumns:
    """The columns that were given."""
    return LabelledColumns(
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        label_column=config.label_column,
    )
