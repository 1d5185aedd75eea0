"""Evaluate a language model on a benchmark: questions of a file, or of each file of a folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.rows import RowReader
from llmctl.data.text.files import format_of, is_readable
from llmctl.data.text.input_files import check_data, data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.benchmarks import BENCHMARK_COLUMNS, BENCHMARKS, read_questions, recognise
from llmctl.evaluation.benchmarks.base import Benchmark, Bools, accuracy, chance
from llmctl.evaluation.bootstrap import paired_difference, percentile_interval, resample_counts
from llmctl.evaluation.choices import Question
from llmctl.evaluation.report import MODEL, Figure, Report, share
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.scoring import LanguageEvaluator, ask
from llmctl.tasks.classify.evaluate import ACCURACY_GAP
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.files import sha256_file, sha256_json
from llmctl.workspace.manifests import InputRecord

WAYS = {
    "plain": "plain",
    "tokens": "by token",
    "bytes": "by byte",
    "pmi": "PMI",
    "greedy": "last word",
}
"""How ways of choosing are called."""

Correct = Mapping[str, Mapping[str, Bools]]
"""Which questions a model got right, by file and by way of choosing."""


class BenchmarkEvaluator(LanguageEvaluator):
    """Questions of a benchmark under language models."""

    reports = tuple(BENCHMARKS)

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        """Whether a benchmark is asked for, or the data's columns tell of one."""
        return benchmark_of(files.data, config) is not None

    def choose(self) -> None:
        """Find the questions."""
        super().choose()
        if self.files.data is None:
            raise UsageError(f"--task {self.config.task}: give its questions, --data FILE")
        self.refuse_prompts()
        self.data = folder_record(self.path) if self.path.is_dir() else data_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Ask all models the same questions."""
        name = benchmark_of(self.path, self.config)
        assert name is not None
        task, reading = BENCHMARKS[name], self.read_options(reporter)
        questions = {
            path.stem: read_questions(task, path, reading=reading) for path in _files_of(self.path)
        }
        everything = [question for of_file in questions.values() for question in of_file]
        notes: list[str] = []
        correct: dict[str, Correct] = {}
        words: dict[str, dict[str, float]] = {}
        for name_of_row, model in self.models.items():
            correct[name_of_row], words[name_of_row] = self._ask(
                model, task, questions, reporter, notes
            )
        ways = next(iter(correct[MODEL].values()))
        way = self.config.score if self.config.score in ways else next(iter(ways))
        results = {row: {**self._results(files), **words[row]} for row, files in correct.items()}
        return Report(
            task=task.name,
            data=str(self.path),
            facts={
                "examples": len(everything),
                "chance": chance(everything),
                "score": way,
                **({"files": _by_file(questions, correct)} if self.path.is_dir() else {}),
            },
            results=results,
            differences={
                row: self._difference(correct[MODEL], files, way)
                for row, files in correct.items()
                if row != MODEL
            },
            notes=notes,
            summary={"accuracy": results[MODEL][way]["accuracy"]},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The rows by ways of choosing; of a folder the files, by models."""
        title = f"{report.model}: {report.task} on {report.facts['examples']:,} questions"
        table = (_files_table if "files" in report.facts else _ways_table)(report, title)
        if report.facts["chance"] is not None:
            first = [""] if "files" in report.facts else []
            shown = f"{report.facts['chance']:.1%}"
            columns = len(table.headings) - len(first)
            row = ["chance", *first, *[shown] * columns]
            table = ReportTable(table.title, table.headings, [*table.rows, row])
        yield table
        yield from report.gaps(ACCURACY_GAP)

    def _ask(
        self,
        model: OpenedModel,
        task: Benchmark,
        questions: Mapping[str, Sequence[Question]],
        reporter: Reporter,
        notes: list[str],
    ) -> tuple[Correct, dict[str, float]]:
        """What a model got right, and further figures of its row."""
        scorer, total = self.scorer(model), sum(map(len, questions.values()))
        correct, cut, done = {}, 0, 0
        totals: list[float] = []
        for file, of_file in questions.items():
            outcomes = []
            for outcome, lost in ask(scorer, model.folder.tokenizer, of_file, greedy=task.greedy):
                outcomes.append(outcome)
                cut += lost > 0
                reporter.progress(f"questions to {model.name}", done := done + 1, total)
            correct[file] = task.correct(of_file, outcomes)
            totals += [float(outcome.log_probs_C[0]) for outcome in outcomes]
        if cut:
            notes.append(
                f"{cut:,} of {total:,} contexts were longer than the {model.folder.max_length} "
                f"tokens that {model.name} reads at once, and lost their beginning"
            )
        # Of the whole word, not of each of its tokens.
        perplexity = math.exp(min(-sum(totals) / total, 700.0))
        return correct, {"word_perplexity": perplexity} if task.greedy else {}

    def _results(self, files: Correct) -> dict[str, Any]:
        """Accuracy by each way of choosing: of one file, or the mean of several."""
        if len(files) == 1:
            (only,) = files.values()
            return {way: accuracy(values) for way, values in only.items()}
        results = {}
        for way in next(iter(files.values())):
            mean, low, high = self._mean([of_file[way].astype(int) for of_file in files.values()])
            results[way] = {"accuracy": mean, "interval": [low, high]}
        return results

    def _difference(self, model: Correct, other: Correct, way: str) -> dict[str, Any]:
        """How much more the model gets right than another, of the same accuracy as the results."""
        pairs = [(model[file][way], other[file][way]) for file in model]
        if len(pairs) == 1:
            how = {"resamples": self.config.resamples, "seed": self.config.seed}
            return paired_difference(*pairs[0], **how)
        mean, low, high = self._mean([a.astype(int) - b for a, b in pairs])
        return {"difference": mean, "low": low, "high": high}

    def _mean(self, files: Sequence[NDArray[np.int64]]) -> tuple[float, float, float]:
        """The mean of files' means, in which each weighs the same, with its interval by the
        bootstrap in each. Values are −1, 0 and 1."""
        generator = np.random.default_rng(self.config.seed)
        drawn_RF = []
        for values in files:
            kinds = np.array([(values < 0).sum(), (values == 0).sum(), (values > 0).sum()])
            drawn = resample_counts(kinds, self.config.resamples, generator)
            drawn_RF.append((drawn[:, 2] - drawn[:, 0]) / len(values))
        low, high = percentile_interval(np.mean(drawn_RF, axis=0))
        return float(np.mean([values.mean() for values in files])), low, high


def benchmark_of(data: Path | None, config: EvaluateConfig) -> str | None:
    """The benchmark that is asked for, or that the data's columns show; None: perplexity."""
    if config.task is not None or data is None:
        return config.task if config.task in BENCHMARKS else None
    if not data.is_dir():
        check_data(data)
    path = _files_of(data)[0]
    if format_of(path) == ".txt":
        return None
    reading = config.read_config().read_options()
    recognised = recognise(RowReader(path, known=BENCHMARK_COLUMNS, reading=reading).columns)
    return recognised.name if recognised else None


def _files_of(data: Path) -> list[Path]:
    """The file, or those of a folder in the order of their names. Raises InputError if there are
    none."""
    if not data.is_dir():
        return [data]
    files = sorted(path for path in data.iterdir() if path.is_file() and is_readable(path))
    if not files:
        raise InputError(f"--data {data} has no files (.jsonl, .csv, .parquet, …) with questions")
    return files


def folder_record(data: Path) -> InputRecord:
    """A folder of questions as an input."""
    digests = [[path.name, sha256_file(path)] for path in _files_of(data)]
    return InputRecord(role="data", name=str(data.resolve()), digest=sha256_json(digests))


def _by_file(
    questions: Mapping[str, Sequence[Question]], correct: Mapping[str, Correct]
) -> dict[str, Any]:
    """The results of each file of a folder."""
    return {
        file: {
            "examples": len(of_file),
            "results": {
                row: {way: accuracy(values) for way, values in files[file].items()}
                for row, files in correct.items()
            },
        }
        for file, of_file in questions.items()
    }


def _ways_table(report: Report, title: str) -> ReportTable:
    model = report.results[MODEL]
    figures = [
        share(f"{shown} (95 %)", f"{way}.accuracy", f"{way}.interval")
        for way, shown in WAYS.items()
        if way in model
    ]
    if "word_perplexity" in model:
        figures.append(Figure("word perplexity", "word_perplexity", ",.1f"))
    return report.table(title, figures)


def _files_table(report: Report, title: str) -> ReportTable:
    way, rows = report.facts["score"], report.results
    figure = share("", f"{way}.accuracy", f"{way}.interval")
    mean = {"examples": report.facts["examples"], "results": rows}
    return ReportTable(
        title,
        ["questions", *map(report.shown, rows)],
        [
            [file, f"{entry['examples']:,}", *map(figure.cell, entry["results"].values())]
            for file, entry in [*report.facts["files"].items(), ("mean", mean)]
        ],
    )
