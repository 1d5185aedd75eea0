"""Evaluate a regression on texts with numbers, beside others and what is simpler.

N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.data.tables.encoded import encode_examples, pad_token
from llmctl.data.tables.labelled import Example, read_examples
from llmctl.data.tables.labelled_files import LabelledColumns, is_held_out, resolve_labelled
from llmctl.data.text.input_files import data_record
from llmctl.errors import UsageError
from llmctl.evaluation.bootstrap import percentile_interval
from llmctl.evaluation.number_baselines import tfidf_ridge
from llmctl.evaluation.report import MODEL, Figure, Gap, Report
from llmctl.evaluation.similarity import Floats, pearson, resampled_spearman, spearman
from llmctl.formats.columns import labelled_columns, labelled_record
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.evaluate import options_for
from llmctl.tasks.evaluation import FOR_LANGUAGE_MODELS, FOR_SOURCES, FOR_WRITERS, Evaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.regress.predict import numbers_of
from llmctl.tasks.regress.task import numbered
from llmctl.tasks.training_data import is_training_file, seen_in_training, training_file
from llmctl.training.precision import choose_device

FIGURES = (
    Figure("Spearman (95 %)", "spearman", ".3f", "intervals.spearman", ends=".3f"),
    Figure("Pearson", "pearson"),
    Figure("mean error", "mean_error"),
    Figure("root mean square", "rms_error"),
)
EXPLAINED = "Spearman: how the orders agree, 1 at best and 0 by chance; errors in the data's units"
RHO_GAP = Gap("Spearman", "+.3f")


class RegressEvaluator(Evaluator):
    """Texts with numbers under a regression."""

    kinds = ("regress",)
    reports = ("regress",)

    def choose(self) -> None:
        """A regression is compared with regressions."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task")
        self.refuse(FOR_WRITERS, "dtype")
        if self.files.data is None:
            raise UsageError(f"{self.model.name} gives numbers: give --data FILE with some")
        for other in self.others:
            if other.kind not in self.kinds:
                raise UsageError(f"--compare {other.name} is {other.described}; give a regression")
        self.data = data_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Measure all on the same rows, and the baselines that the training's texts give."""
        reading = self.read_options(reporter, as_trained=True)
        columns = labelled_columns(
            self.model,
            self.path,
            options_for(self.config),
            need_label=True,
            reading=reading,
            note=self.note_for(reporter, self.model),
        )
        rows = list(read_examples(self.path, columns, reading=reading))
        examples = numbered(self.path, rows, reporter)
        true_N = np.asarray([float(example.label or "") for example in examples])
        answers = {name: self._numbers(model, examples) for name, model in self.models.items()}
        notes = [
            note for model in self.models.values() for note in seen_in_training(model, self.path)
        ]
        if self.config.baselines:
            answers |= self._baselines(examples, notes)
        drawn = resampled_spearman(
            list(answers.values()), true_N, resamples=self.config.resamples, seed=self.config.seed
        )
        results = {
            name: _figures(given_N, true_N, drawn_R)
            for (name, given_N), drawn_R in zip(answers.items(), drawn, strict=True)
        }
        differences = {}
        for name, drawn_R in list(zip(answers, drawn, strict=True))[1:]:
            low, high = percentile_interval(drawn[0] - drawn_R)
            gap = results[MODEL]["spearman"] - results[name]["spearman"]
            differences[name] = {"difference": gap, "low": low, "high": high}
        return Report(
            task="regress",
            data=str(self.path),
            facts={
                "examples": len(examples),
                "columns": labelled_record(columns),
                "training_file": is_training_file(self.model, self.path),
            },
            results=results,
            differences=differences,
            notes=notes,
            summary={name: results[MODEL][name] for name in ("spearman", "mean_error")},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows and the differences."""
        yield report.table(f"{report.model} on {report.facts['examples']:,} examples", FIGURES)
        yield EXPLAINED
        yield from report.gaps(RHO_GAP)

    def _numbers(self, model: OpenedModel, examples: Sequence[Example]) -> Floats:
        folder = model.folder
        network = folder.network().to(choose_device(self.config.device))
        pad = folder.end_padding
        encoded = encode_examples(folder.tokenizer, examples, folder.max_length, pad=pad)
        return numbers_of(network, encoded, pad_token(folder.tokenizer))

    def _baselines(self, examples: Sequence[Example], notes: list[str]) -> dict[str, Floats]:
        """The training's mean, and a linear model of its words."""
        path = training_file(self.model, notes)
        if path is None:
            return {}
        trained = self._trained_on(path)
        numbers = np.asarray([float(example.label or "") for example in trained])
        found = {"mean": np.full(len(examples), numbers.mean())}
        pairs = [[(e.text, e.text_pair) for e in part] for part in (trained, examples)]
        try:
            found["TF-IDF + ridge"] = tfidf_ridge(pairs[0], numbers, pairs[1])
        except UsageError as error:
            notes.append(f"TF-IDF + ridge left out: {error}")
        return found

    def _trained_on(self, path: Path) -> list[Example]:
        reading = self.model.read_config.read_options()
        columns = self.model.labelled or resolve_labelled(path, LabelledColumns(), reading)
        share = self.model.options["validation"]
        examples = numbered(path, list(read_examples(path, columns, reading=reading)), Reporter())
        return [example for example in examples if not is_held_out(example, share)]


def _figures(given_N: Floats, true_N: Floats, drawn_R: Floats) -> dict[str, Any]:
    error_N = given_N - true_N
    # Of one number for every text there is no order, and so no correlation.
    rho, linear = (float(np.nan_to_num(f(given_N, true_N))) for f in (spearman, pearson))
    return {
        "spearman": rho,
        "pearson": linear,
        "mean_error": float(np.abs(error_N).mean()),
        "rms_error": float(np.sqrt(np.square(error_N).mean())),
        "intervals": {"spearman": percentile_interval(drawn_R)},
    }
