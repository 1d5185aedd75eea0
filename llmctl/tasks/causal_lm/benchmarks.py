"""Evaluate a language model on a task: questions of a file, or of each file of a folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.rows import RowReader
from llmctl.data.text.files import format_of, is_readable
from llmctl.errors import InputError
from llmctl.evaluation.benchmarks import KNOWN, TASKS, read_questions, recognise
from llmctl.evaluation.benchmarks.base import accuracy, chance
from llmctl.evaluation.bootstrap import paired_difference, percentile_interval, resample_counts
from llmctl.evaluation.choices import Outcome, Question
from llmctl.inference.scoring import Scorer, encode_query
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.evaluation import EvaluateConfig, Given, Report, Subject
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import sha256_file, sha256_json
from llmctl.workspace.manifests import InputRecord

Bools = NDArray[np.bool_]


def task_of(data: Path, config: EvaluateConfig) -> str:
    """What ``--data`` is measured on: as asked, or as the columns tell; else its perplexity."""
    if config.task is not None:
        return config.task
    path = data_files(data)[0]
    if format_of(path) == ".txt":
        return "perplexity"
    found = recognise(
        RowReader(path, known=KNOWN, reading=config.read_config().read_options()).columns
    )
    return found.name if found else "perplexity"


def data_files(data: Path) -> list[Path]:
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
    digests = [[path.name, sha256_file(path)] for path in data_files(data)]
    return InputRecord(role="data", name=str(data.resolve()), digest=sha256_json(digests))


def task_report(name: str, given: Given, config: EvaluateConfig, reporter: Reporter) -> Report:
    """The questions under the model, and under those that it is compared with."""
    assert given.data is not None
    task = TASKS[name]
    reading = config.read_config().read_options(reporter.note)
    questions = {
        path.stem: read_questions(task, path, reading=reading) for path in data_files(given.data)
    }
    total = sum(map(len, questions.values()))
    notes = list(given.notes)
    correct: dict[str, dict[str, dict[str, Bools]]] = {}
    words: dict[str, Any] = {}
    for model, subject in given.subjects.items():
        scorer, shown = subject.scorer(config.device, config.dtype), f"questions to {subject.name}"
        correct[model], cut, done = {}, 0, 0
        totals: list[float] = []
        for file, of_file in questions.items():
            outcomes = []
            for outcome, lost in ask(scorer, subject.tokenizer, of_file, greedy=task.greedy):
                outcomes.append(outcome)
                cut += lost > 0
                reporter.progress(shown, done := done + 1, total)
            correct[model][file] = task.correct(of_file, outcomes)
            totals += [float(outcome.log_probs_C[0]) for outcome in outcomes]
        if task.greedy:
            # Of the whole word, not of each of its tokens.
            words[model] = math.exp(min(-sum(totals) / total, 700.0))
        if cut:
            notes.append(_cut_note(subject, cut, total))
            reporter.note(notes[-1])
    method = next(iter(correct["model"].values()))
    main = config.score if config.score in method else next(iter(method))
    results = {model: _results(files, config) for model, files in correct.items()}
    for model, perplexity in words.items():
        results[model]["word_perplexity"] = perplexity
    report: Report = {
        "task": name,
        "data": str(given.data),
        "examples": total,
        "chance": chance([question for of_file in questions.values() for question in of_file]),
        "score": main,
        "results": results,
        "differences": {
            model: _difference(correct["model"], files, main, config)
            for model, files in correct.items()
            if model != "model"
        },
        "notes": notes,
        "summary": {"accuracy": results["model"][main]["accuracy"]},
    }
    if given.data.is_dir():
        report["files"] = {
            file: {
                "examples": len(of_file),
                "results": {
                    model: {way: accuracy(values) for way, values in files[file].items()}
                    for model, files in correct.items()
                },
            }
            for file, of_file in questions.items()
        }
    return report


def ask(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question], *, greedy: bool = False
) -> Iterator[tuple[Outcome, int]]:
    """What a model makes of each question, and the tokens that its context lost to fit."""
    queries = [
        encode_query(tokenizer, question.context, question.choices, source=question.source)
        for question in questions
    ]
    priors = _priors(scorer, tokenizer, questions)
    answers = scorer.score(iter(queries), greedy=greedy)
    for question, prior_C, answer in zip(questions, priors, answers, strict=True):
        yield (
            Outcome(
                np.array([score.total for score in answer.scores]),
                np.array([len(score.log_probs) for score in answer.scores]),
                question.sizes,
                prior_C,
                answer.scores[0].greedy,
            ),
            answer.cut,
        )


def _priors(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question]
) -> list[NDArray[np.float64] | None]:
    """Log-probabilities of each question's choices behind its prior context: often the same for
    many, and then asked once."""
    keys = [(question.prior, question.choices) for question in questions]
    distinct = dict.fromkeys(key for key in keys if key[0] is not None)
    queries = [
        encode_query(tokenizer, prior or "", choices, source=f"the prior of {choices[0]!r}")
        for prior, choices in distinct
    ]
    found = {
        key: np.array([score.total for score in answer.scores])
        for key, answer in zip(distinct, scorer.score(queries), strict=True)
    }
    return [found.get(key) for key in keys]


def _results(files: Mapping[str, Mapping[str, Bools]], config: EvaluateConfig) -> dict[str, Any]:
    """Accuracy by each way of choosing: of one file, or the mean of several."""
    if len(files) == 1:
        (only,) = files.values()
        return {way: accuracy(values) for way, values in only.items()}
    found = {}
    for way in next(iter(files.values())):
        mean, low, high = _mean([of_file[way].astype(int) for of_file in files.values()], config)
        found[way] = {"accuracy": mean, "interval": [low, high]}
    return found


def _difference(
    model: Mapping[str, Mapping[str, Bools]],
    other: Mapping[str, Mapping[str, Bools]],
    way: str,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """How much more the model gets right than another, of the same accuracy as ``_results``."""
    pairs = [(model[file][way], other[file][way]) for file in model]
    if len(pairs) == 1:
        return paired_difference(*pairs[0], resamples=config.resamples, seed=config.seed)
    mean, low, high = _mean([a.astype(int) - b for a, b in pairs], config)
    return {"difference": mean, "low": low, "high": high}


def _mean(files: Sequence[NDArray[np.int64]], config: EvaluateConfig) -> tuple[float, float, float]:
    """The mean of files' means, in which each weighs the same, with its interval by the bootstrap
    in each. Values are −1, 0 and 1."""
    generator = np.random.default_rng(config.seed)
    drawn_RF = []
    for values in files:
        kinds = np.array([(values < 0).sum(), (values == 0).sum(), (values > 0).sum()])
        drawn = resample_counts(kinds, config.resamples, generator)
        drawn_RF.append((drawn[:, 2] - drawn[:, 0]) / len(values))
    low, high = percentile_interval(np.mean(drawn_RF, axis=0))
    return float(np.mean([values.mean() for values in files])), low, high


def _cut_note(subject: Subject, cut: int, total: int) -> str:
    return (
        f"{cut:,} of {total:,} contexts were longer than the {subject.neural.max_length} tokens "
        f"that {subject.name} reads at once, and lost their beginning"
    )
