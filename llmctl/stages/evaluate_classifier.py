"""Evaluate a classifier on labelled texts, beside others and what is simpler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables import Example
from llmctl.errors import InputError, UsageError
from llmctl.evaluation import baselines, classification
from llmctl.evaluation.bootstrap import paired_difference
from llmctl.inference.prediction import BATCH, class_probabilities
from llmctl.interop.model_folder import ModelFolder
from llmctl.objectives.classify import encode_examples, pad_token
from llmctl.stages.evaluate_config import EvaluateConfig, Given, Report
from llmctl.stages.inputs import LabelledColumns, is_held_out, read_labelled
from llmctl.stages.reporter import Reporter
from llmctl.training.distributed import current
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Artefact
from llmctl.workspace.files import sha256_file

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
    folder, run, data = given.subject.neural, given.subject.run, given.data
    assert data is not None
    labels = folder.labels or []
    examples = read_labelled(data, columns_like_training(run, config), reporter)
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
        table.add(name, probabilities(subject.neural, examples, labels, config.device))
    notes: list[str] = []
    train = training_examples(run, notes) if config.baselines else None
    if train:
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
        "results": rows,
        "differences": table.differences("model"),
        "notes": notes,
        "summary": {"accuracy": rows["model"]["accuracy"], "macro_f1": rows["model"]["macro_f1"]},
    }


def probabilities(
    folder: ModelFolder, examples: Sequence[Example], labels: Sequence[str], device: str
) -> Probabilities:
    """A classifier's probabilities, its classes in the order of ``labels``."""
    known = folder.labels or []
    if set(known) != set(labels):
        raise InputError(
            f"{folder.path} knows other classes ({', '.join(known[:5])}, …) than the model it is "
            "compared with; compare classifiers of one task"
        )
    model = folder.classifier().to(choose_device(device))
    encoded = encode_examples(folder.tokenizer, examples, folder.max_length, causal=model.causal)
    pad = pad_token(folder.tokenizer)
    rows = current().divided(
        encoded, lambda part, first: class_probabilities(model, list(part), pad), block=4 * BATCH
    )
    result = np.asarray(list(rows))
    return result[:, [known.index(label) for label in labels]]


def joined(example: Example) -> str:
    """An example's texts as one."""
    return f"{example.text} {example.text_pair}" if example.text_pair else example.text


def columns_like_training(run: Artefact | None, config: EvaluateConfig) -> LabelledColumns:
    """The columns given, else those of the finetuning."""
    trained = run.manifest.config.get("data", {}) if run else {}
    return LabelledColumns(
        text_column=config.text_column or trained.get("text_column"),
        text_pair_column=config.text_pair_column or trained.get("text_pair_column"),
        label_column=config.label_column or trained.get("label_column"),
        encoding_errors=config.encoding_errors or trained.get("encoding_errors", "strict"),
    )


def training_examples(run: Artefact | None, notes: list[str]) -> list[Example] | None:
    """What a classifier was trained on, its held-out part left out, for the baselines; None, with
    a note, where that can't be told."""
    record = None
    if run is not None:
        record = next((r for r in run.manifest.inputs if r.role == "data"), None)
    path = Path(record.name) if record else None
    if run is None or record is None or path is None:
        notes.append("baselines left out: a model folder does not say what it was trained on")
    elif not path.is_file() or sha256_file(path) != record.digest:
        notes.append(f"baselines left out: the training data {path} is gone or has changed")
    else:
        given = run.manifest.config["data"]
        columns = LabelledColumns(**{key: given[key] for key in LabelledColumns.model_fields})
        return [
            example
            for example in read_labelled(path, columns, Reporter())
            if not is_held_out(example, given["validation"])
        ]
    return None
