"""Evaluate a classifier on labelled texts, beside others and what is simpler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.encoded import encode_examples, pad_token
from llmctl.data.tables.labelled import Columns, Example, read_examples
from llmctl.data.tables.labelled_files import LabelledColumns, with_label
from llmctl.data.text.decoding import ReadOptions
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation import baselines, classification
from llmctl.evaluation.bootstrap import paired_difference
from llmctl.evaluation.report import MODEL, Figure, Gap, Report, share
from llmctl.formats.columns import labelled_columns, labelled_record
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.batches import cut_in_use
from llmctl.tasks.classify.labels import gives_several, is_ordinal
from llmctl.tasks.classify.predict import BATCH, class_probabilities
from llmctl.tasks.classify.ready import ready_classifier
from llmctl.tasks.evaluation import (
    FOR_LANGUAGE_MODELS,
    FOR_SOURCES,
    FOR_WRITERS,
    EvaluateConfig,
    Evaluator,
)
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.training_data import (
    is_training_file,
    seen_examples,
    seen_in_training,
    training_examples,
)
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device

Probabilities = NDArray[np.float64]

LARGEST_MATRIX = 20
"""Classes; a larger confusion matrix is in the report only."""

FIGURES = (
    share("accuracy (95 %)", "accuracy", "intervals.accuracy"),
    Figure("macro F1", "macro_f1"),
    Figure("micro F1", "micro_f1"),
    Figure("MCC", "mcc"),
    Figure("ECE", "expected_calibration_error"),
)
EXPLAINED = (
    "macro F1: the mean of the classes' F1, whatever their size; MCC: how labels and predictions "
    "correlate, 0 by chance, 1 if all are right; ECE: how far probabilities are from the share "
    "that is right, 0 at best"
)
ACCURACY_GAP = Gap("accuracy", "+.1f", 100, " points")


class ClassTable:
    """The rows of a report: what each of several ways of answering gets right."""

    def __init__(
        self, true_N: NDArray[np.int64], labels: Sequence[str], config: EvaluateConfig
    ) -> None:
        self.true, self._labels, self._config = true_N, labels, config
        self.rows: dict[str, dict[str, Any]] = {}
        self.correct: dict[str, NDArray[np.bool_]] = {}

    def given(self, probabilities_NC: Probabilities) -> NDArray[np.int64]:
        """The class that is given for each example, (N,)."""
        return probabilities_NC.argmax(-1)

    def add(self, name: str, probabilities_NC: Probabilities) -> None:
        """Another row."""
        given_N = self.given(probabilities_NC)
        self.rows[name] = classification.report(
            probabilities_NC,
            self.true,
            self._labels,
            predicted_N=given_N,
            resamples=self._config.resamples,
            seed=self._config.seed,
        )
        self.correct[name] = given_N == self.true

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

    def summary(self, name: str) -> dict[str, float]:
        """The figures of a row that are shown wherever reports are listed."""
        return {figure: self.rows[name][figure] for figure in ("accuracy", "macro_f1")}

    def differences(self, name: str) -> dict[str, Any]:
        """How much more one row gets right than each other."""
        return {
            other: paired_difference(self.correct[name], correct, seed=self._config.seed)
            for other, correct in self.correct.items()
            if other != name
        }


class ClassifierEvaluator(Evaluator):
    """Labelled texts under a classifier."""

    table_type: ClassVar[type[ClassTable]] = ClassTable

    kinds = ("classify", "setfit")
    reports = ("classify",)

    @classmethod
    def for_model(cls, model: OpenedModel) -> Any:
        """That of several labels, or of ordered ones."""
        from llmctl.tasks.classify import evaluate_several

        if gives_several(model.folder):
            return evaluate_several.MultiLabelEvaluator
        return evaluate_several.OrdinalEvaluator if is_ordinal(model.folder) else cls

    def choose(self) -> None:
        """A classifier is compared with classifiers."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task")
        self.refuse(FOR_WRITERS, "dtype")
        if self.files.data is None:
            raise UsageError(
                f"{self.model.name} is a classifier: give --data FILE with labelled examples"
            )
        for other in self.others:
            if other.kind not in self.kinds:
                raise UsageError(f"--compare {other.name} is a pretrained model; give a classifier")
            if gives_several(other.folder) != gives_several(self.model.folder):
                raise UsageError(
                    f"of --from {self.model.name} and --compare {other.name} one gives a text one "
                    "label and the other any number; compare those of one task"
                )
        self.data = data_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Measure all on the same rows, and the baselines that the training's texts give."""
        labels = self.model.folder.labels or []
        read, columns = self._same_rows(reporter)
        examples = read[MODEL]
        table = self.table_type(self._numbers(examples, labels), labels, self.config)
        notes: list[str] = []
        for name, model in self.models.items():
            probabilities_NC = probabilities(model, read[name], labels, self.config.device, notes)
            table.add(name, probabilities_NC)
        trained, seen = self._trained_on(examples, notes)
        if trained:
            notes += table.add_baselines(
                [joined(example) for example in examples],
                [joined(example) for example in trained],
                self._numbers(trained, labels),
            )
        return Report(
            task=self.reports[0],
            data=str(self.path),
            facts=self._facts(examples, columns, seen),
            results=table.rows,
            differences=table.differences(MODEL),
            notes=notes,
            summary=table.summary(MODEL),
        )

    def _trained_on(
        self, examples: Sequence[Example], notes: list[str]
    ) -> tuple[Sequence[Example], dict[str, Any] | None]:
        """The examples that baselines learn from, none where none are wanted or there, and how many
        of those measured on were seen in training, which is noted."""
        # The very file is told by its digest, other files with texts of it by these.
        unread: list[str] = []
        training = training_examples(self.model, unread)
        seen: dict[str, Any] | None = None
        if training is not None:
            seen, told = seen_examples(self.model, examples, training)
            notes += told
        for model in self.models.values():
            if model is not self.model or seen is None or not seen["trained"]:
                notes += seen_in_training(model, self.path)
        if not self.config.baselines:
            return (), seen
        notes += unread
        return () if training is None else training.trained, seen

    def _facts(
        self,
        examples: Sequence[Example],
        columns: Mapping[str, Columns],
        seen: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """What else is to be known of the measurement."""
        return {
            "examples": len(examples),
            "columns": {name: labelled_record(taken) for name, taken in columns.items()},
            "training_file": is_training_file(self.model, self.path),
            "seen_in_training": seen,
        }

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, the differences, and the model's confusion matrix."""
        yield report.table(f"{report.model} on {report.facts['examples']:,} examples", FIGURES)
        yield EXPLAINED
        yield from report.gaps(ACCURACY_GAP)
        model = report.results[MODEL]
        if len(model["classes"]) <= LARGEST_MATRIX:
            yield confusion(model)

    def _numbers(self, examples: Sequence[Example], labels: Sequence[str]) -> NDArray[np.int64]:
        """The number of each example's label. Raises InputError for a label that is unknown."""
        number_of = {label: number for number, label in enumerate(labels)}
        unknown = sorted({example.label or "" for example in examples} - number_of.keys())
        if unknown:
            raise InputError(
                f"{self.path} has labels that the classifier does not know "
                f"({', '.join(unknown[:5])}); it knows {', '.join(labels[:10])}"
            )
        return np.asarray([number_of[example.label or ""] for example in examples])

    def _reads(self, columns: Columns, reading: ReadOptions) -> Columns:
        """The columns with how their labels are read."""
        return columns

    def _same_rows(self, reporter: Reporter) -> tuple[dict[str, list[Example]], dict[str, Columns]]:
        """Rows of the file that are the same for each model, by the columns that it was trained on,
        and those.

        Rows in which a model would find no text are left out for all. Raises InputError if none
        are left.
        """
        columns: dict[str, Columns] = {}
        read: dict[str, list[Example]] = {}
        reading = self.read_options(reporter, as_trained=True)
        for name, model in self.models.items():
            options = options_for(self.config)
            if columns:  # all are measured by the same labels
                options = options.replace(label_column=columns[MODEL].label)
            columns[name] = labelled_columns(
                model,
                self.path,
                options,
                need_label=True,
                reading=reading,
                note=self.note_for(reporter, model),
            )
            columns[name] = self._reads(columns[name], reading)
            same = next((n for n, taken in columns.items() if taken == columns[name]), name)
            read[name] = (
                list(read_examples(self.path, columns[name], reading=reading))
                if same == name
                else read[same]
            )
        rows = list(zip(*read.values(), strict=True))
        blank = [row[0] for row in rows if not all(example.text for example in row)]
        if blank:
            reporter.note(f"left out {len(blank)} rows without text (the first: {blank[0].source})")
        kept = [row for row in rows if all(example.text for example in row)]
        labelled = with_label([row[0] for row in kept], self.model.folder.labels or [], reporter)
        sources = {example.source for example in labelled}
        kept = [row for row in kept if row[0].source in sources]
        if not kept:
            raise InputError(f"{self.path} has no labelled texts")
        return dict(zip(read, map(list, zip(*kept, strict=True)), strict=True)), columns


def confusion(model: dict[str, Any]) -> ReportTable:
    """The confusion matrix of the model's row."""
    rows = zip(model["classes"], model["confusion_matrix"], strict=True)
    return ReportTable(
        "confusion matrix: true in rows, predicted in columns",
        # Numbers, as label names side by side would not fit.
        [*(str(number) for number in range(1, len(model["classes"]) + 1)), "F1"],
        [
            [f"{number}: {entry['label']}", *map(str, row), f"{entry['f1']:.3f}"]
            for number, (entry, row) in enumerate(rows, 1)
        ],
    )


def probabilities(
    model: OpenedModel,
    examples: Sequence[Example],
    labels: Sequence[str],
    device: str,
    notes: list[str],
) -> Probabilities:
    """A classifier's probabilities, its classes in the order of ``labels``.

    notes: gets one of texts that were too long.
    """
    if gives_several(model.folder):
        raise InputError(f"{model.name} gives a text any number of labels, and here it has one")
    places = places_of(model, labels)
    return encoded_probabilities(model, examples, device, notes)[:, places]


def places_of(model: OpenedModel, labels: Sequence[str]) -> list[int]:
    """The number that each label has with a model. Raises InputError where it knows others."""
    known = model.folder.labels or []
    if set(known) != set(labels):
        raise InputError(
            f"{model.folder.path} knows other classes ({', '.join(known[:5])}, …) than the model "
            "it is compared with; compare classifiers of one task"
        )
    return [known.index(label) for label in labels]


def encoded_probabilities(
    model: OpenedModel, examples: Sequence[Example], device: str, notes: list[str]
) -> Probabilities:
    """A classifier's probabilities, its classes in its own order; see ``probabilities``."""
    folder = model.folder
    several = gives_several(folder)
    classifier = ready_classifier(folder, choose_device(device))
    encoded = encode_examples(folder.tokenizer, examples, folder.max_length, pad=folder.end_padding)
    if cut := sum(example.cut for example in encoded):
        notes.append(f"{model.name}: {cut_in_use(cut, len(encoded), folder)}")
    pad = pad_token(folder.tokenizer)
    rows = get_world().map_sharded(
        encoded,
        lambda part, first: class_probabilities(
            classifier, list(part), pad, several=several
        ).tolist(),
        block=4 * BATCH,
        kind=list[float],
    )
    return np.asarray(list(rows))


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
