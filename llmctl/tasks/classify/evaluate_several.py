"""Evaluate classifiers of several labels, and of ordered classes, beside what is simpler.

N examples, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.labelled import Columns, Example, labels_of
from llmctl.data.tables.labelled_files import find_separator
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError, UsageError
from llmctl.evaluation import baselines, multilabel, ordinal
from llmctl.evaluation.bootstrap import percentile_interval
from llmctl.evaluation.report import MODEL, Figure, Gap, Report, share
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.evaluate import (
    ACCURACY_GAP,
    LARGEST_MATRIX,
    ClassifierEvaluator,
    ClassTable,
    confusion,
    encoded_probabilities,
    joined,
    places_of,
)
from llmctl.tasks.classify.labels import thresholds_of
from llmctl.tasks.opened import OpenedModel

SEVERAL_FIGURES = (
    share("micro F1 (95 %)", "micro_f1", "intervals.micro_f1"),
    share("macro F1", "macro_f1"),
    Figure("mAP", "mean_average_precision"),
    Figure("micro AP", "micro_average_precision"),
    share("exact", "exact_match"),
)
SEVERAL_EXPLAINED = (
    "F1 of labels at the thresholds that validation chose, over all decisions (micro) and as the "
    "mean of the labels' (macro); mAP: the mean of the labels' average precisions, whatever the "
    "threshold; exact: texts whose labels are all right"
)
MICRO_F1_GAP = Gap("micro F1", "+.1f", 100, " points")
ORDINAL_FIGURES = (
    Figure("mean error", "mean_error"),
    Figure("κ, quadratic", "quadratic_kappa"),
    share("accuracy (95 %)", "accuracy", "intervals.accuracy"),
    Figure("macro F1", "macro_f1"),
    Figure("ECE", "expected_calibration_error"),
)
ORDINAL_EXPLAINED = (
    "mean error: how many classes off; κ: agreement beyond chance, an error weighed by its square, "
    "1 at best; ECE: how far probabilities are from the share that is right"
)


class MultiLabelEvaluator(ClassifierEvaluator):
    """Texts with any number of labels under a classifier."""

    reports = ("multi_label",)

    def run(self, reporter: Reporter) -> Report:
        """Measure all on the same rows, and the baselines that the training's texts give."""
        labels = self.model.folder.labels or []
        read, columns = self._same_rows(reporter)
        examples, notes = read[MODEL], list[str]()
        true_NC = self._sets(examples, labels)
        answers = {
            name: self._answers(model, read[name], labels, notes)
            for name, model in self.models.items()
        }
        trained, seen = self._trained_on(examples, notes)
        if trained:
            answers |= self._baselines(examples, trained, labels, notes)
        results, differences = self._figures(answers, true_NC, labels)
        return Report(
            task="multi_label",
            data=str(self.path),
            facts=self._facts(examples, columns, seen),
            results=results,
            differences=differences,
            notes=notes,
            summary={name: results[MODEL][name] for name in ("micro_f1", "mean_average_precision")},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, the differences, and the model's labels."""
        examples = report.facts["examples"]
        yield report.table(f"{report.model} on {examples:,} examples", SEVERAL_FIGURES)
        yield SEVERAL_EXPLAINED
        yield from report.gaps(MICRO_F1_GAP)
        rows = [
            [
                entry["label"], f"{entry['support']:,}", f"{entry['threshold']:.2f}",
                f"{entry['f1']:.3f}", f"{entry['average_precision']:.3f}",
            ]
            for entry in report.results[MODEL]["classes"]
        ]  # fmt: skip
        yield ReportTable("by label", ["texts", "threshold", "F1", "AP"], rows)

    def _figures(
        self,
        answers: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
        true_NC: NDArray[np.bool_],
        labels: Sequence[str],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows' figures, and how the first row's micro F1 differs from the others'."""
        results, differences, drawn = dict[str, Any](), dict[str, Any](), dict[str, Any]()
        for name, (found_NC, limits_C) in answers.items():
            drawn[name] = multilabel.resampled_f1(
                found_NC >= limits_C, true_NC,
                resamples=self.config.resamples, seed=self.config.seed,
            )  # fmt: skip
            results[name] = multilabel.report(found_NC, true_NC, limits_C, labels, drawn[name])
        for name in list(answers)[1:]:
            low, high = percentile_interval(drawn[MODEL][:, 0] - drawn[name][:, 0])
            gap = results[MODEL]["micro_f1"] - results[name]["micro_f1"]
            differences[name] = {"difference": gap, "low": low, "high": high}
        return results, differences

    def _reads(self, columns: Columns, reading: ReadOptions) -> Columns:
        if columns.separator is None:  # a folder that doesn't say how its labels stood
            separator = find_separator(self.path, columns, reading)
            return replace(columns, separator=separator)
        return columns

    def _sets(self, examples: Sequence[Example], labels: Sequence[str]) -> NDArray[np.bool_]:
        """Which labels each example has, (N, C). Raises InputError for one that is unknown."""
        number_of = {label: number for number, label in enumerate(labels)}
        true_NC = np.zeros((len(examples), len(labels)), dtype=bool)
        for row, example in enumerate(examples):
            for label in labels_of(example.label):
                if label not in number_of:
                    raise InputError(
                        f"{example.source} has the label {label!r}, which the classifier does not "
                        f"know; it knows {', '.join(labels[:10])}"
                    )
                true_NC[row, number_of[label]] = True
        return true_NC

    def _answers(
        self,
        model: OpenedModel,
        examples: Sequence[Example],
        labels: Sequence[str],
        notes: list[str],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The probabilities (N, C) and thresholds (C,) of a model's labels in an order."""
        places = places_of(model, labels)
        found_NC = encoded_probabilities(model, examples, self.config.device, notes)
        return found_NC[:, places], thresholds_of(model.folder)[places]

    def _baselines(
        self,
        examples: Sequence[Example],
        trained: Sequence[Example],
        labels: Sequence[str],
        notes: list[str],
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Each label's frequency, and a logistic regression for each on TF-IDF."""
        true_NC = self._sets(trained, labels)
        half = np.full(len(labels), multilabel.DEFAULT_THRESHOLD)
        found = {"label frequencies": (np.tile(true_NC.mean(0), (len(examples), 1)), half)}
        name = "TF-IDF + logistic regression"
        try:
            found[name] = (
                baselines.tfidf_one_vs_rest(
                    list(map(joined, trained)), true_NC, list(map(joined, examples))
                ),
                half,
            )
        except UsageError as error:
            notes.append(f"{name} left out: {error}")
        return found


class OrdinalTable(ClassTable):
    """The rows of a report on ordered classes."""

    def given(self, probabilities_NC: NDArray[np.float64]) -> NDArray[np.int64]:
        """The median of the classes."""
        return ordinal.median_class(probabilities_NC)

    def add(self, name: str, probabilities_NC: NDArray[np.float64]) -> None:
        super().add(name, probabilities_NC)
        given_N = self.given(probabilities_NC)
        self.rows[name] |= ordinal.figures(self.true, given_N, probabilities_NC.shape[1])

    def summary(self, name: str) -> dict[str, float]:
        return {key: self.rows[name][key] for key in ("mean_error", "quadratic_kappa")}


class OrdinalEvaluator(ClassifierEvaluator):
    """Texts of ordered classes under a classifier."""

    reports = ("ordinal",)
    table_type = OrdinalTable

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows, the differences, and the model's confusion matrix."""
        examples = report.facts["examples"]
        yield report.table(f"{report.model} on {examples:,} examples", ORDINAL_FIGURES)
        yield ORDINAL_EXPLAINED
        yield from report.gaps(ACCURACY_GAP)
        if len(report.results[MODEL]["classes"]) <= LARGEST_MATRIX:
            yield confusion(report.results[MODEL])
