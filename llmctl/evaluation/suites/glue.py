"""GLUE (Wang et al. 2018, arXiv:1804.07461): nine tasks on sentences and pairs, how their files are
read, and what each is measured by.

A folder has a folder for each task, as GLUE's download has (``CoLA/train.tsv``, ``CoLA/dev.tsv``),
or files called ``cola.train.jsonl`` and ``cola.valid.jsonl``, as BabyLM has. Columns are found by
their names; quotes are literal.

N examples, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import DEFAULT, text_lines
from llmctl.data.text.files import format_of, is_table
from llmctl.errors import InputError
from llmctl.evaluation.bootstrap import percentile_interval
from llmctl.evaluation.similarity import spearman

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE."""

    name: str
    metric: str
    """``accuracy``, ``f1`` (of the class 1), ``mcc`` or ``spearman``."""
    text: tuple[str, ...]
    """What the text's column may be called."""
    pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ("label",)
    bare: Mapping[int, tuple[int, ...]] | None = None
    """Where a file has no header: columns of text, second text and label, by how many there are at
    least."""

    @property
    def keys(self) -> tuple[str, ...]:
        """What its folder or files may be called, in lower case."""
        plain = self.name.lower().replace("-", "")
        return (self.name.lower(), plain, f"{plain}_small")

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return self.metric == "spearman"


GLUE_TASKS = (
    GlueTask("CoLA", "mcc", ("sentence",), bare={4: (3, 1)}),
    GlueTask("SST-2", "accuracy", ("sentence",), bare={2: (0, 1)}),
    GlueTask("MRPC", "f1", ("#1 String", "sentence1"), ("#2 String", "sentence2"),
             ("Quality", "label")),
    GlueTask("STS-B", "spearman", ("sentence1",), ("sentence2",), ("score", "label"),
             bare={7: (5, 6, 4)}),
    GlueTask("QQP", "f1", ("question1",), ("question2",), ("is_duplicate", "label")),
    GlueTask("MNLI", "accuracy", ("sentence1", "premise"), ("sentence2", "hypothesis"),
             ("gold_label", "label")),
    GlueTask("QNLI", "accuracy", ("question",), ("sentence",)),
    GlueTask("RTE", "accuracy", ("sentence1", "premise"), ("sentence2", "hypothesis")),
    GlueTask("WNLI", "accuracy", ("sentence1",), ("sentence2",)),
)  # fmt: skip
TRAIN_FILES, DEV_FILES = ("train",), ("dev_matched", "dev", "valid", "validation")

PUBLISHED_GLUE: dict[str, dict[str, float]] = {
    "BERT-Tiny": {"CoLA": 0.0, "SST-2": 83.2, "MRPC": 81.1, "STS-B": 73.6, "QQP": 62.2,
                  "MNLI": 70.2, "QNLI": 81.5, "RTE": 57.2, "WNLI": 62.3},
    "BERT-Mini": {"CoLA": 0.0, "SST-2": 85.9, "MRPC": 81.1, "STS-B": 73.3, "QQP": 66.4,
                  "MNLI": 74.8, "QNLI": 84.1, "RTE": 57.9, "WNLI": 62.3},
    "BERT-Small": {"CoLA": 27.8, "SST-2": 89.7, "MRPC": 83.4, "STS-B": 77.0, "QQP": 68.1,
                   "MNLI": 77.6, "QNLI": 86.4, "RTE": 61.8, "WNLI": 62.3},
    "BERT-Medium": {"CoLA": 38.0, "SST-2": 89.6, "MRPC": 86.6, "STS-B": 78.4, "QQP": 69.6,
                    "MNLI": 80.0, "QNLI": 87.7, "RTE": 62.2, "WNLI": 62.3},
}  # fmt: skip
"""On GLUE's hidden test part, in percent, by Google's small BERTs (Turc et al. 2019, the README of
google-research/bert)."""


@dataclass(frozen=True)
class GlueExample:
    """An example of a task."""

    text: str
    text_pair: str | None
    label: str

    def record(self) -> dict[str, str]:
        """The example as a row of a table."""
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {"text": self.text, **pair, "label": self.label}


@dataclass(frozen=True)
class GlueData:
    """A task with its files."""

    task: GlueTask
    train: Path
    dev: Path


def find_tasks(folder: Path) -> list[GlueData]:
    """The tasks of a folder. Raises InputError where it has none, or a task lacks a part."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the one that has GLUE's folders")
    found = [data for task in GLUE_TASKS if (data := _find(folder, task)) is not None]
    if not found:
        names = ", ".join(task.name for task in GLUE_TASKS)
        raise InputError(
            f"{folder} has no folder and no files of a task ({names}); give GLUE's folder, with "
            "CoLA/train.tsv and the like"
        )
    return found


def _find(folder: Path, task: GlueTask) -> GlueData | None:
    parts: dict[str, list[Path]] = {"train": [], "dev": []}
    for path in sorted(folder.iterdir()):
        key = path.name.lower()
        if path.is_dir() and key in task.keys:
            candidates = [(file.name.lower(), file) for file in sorted(path.iterdir())]
        elif path.is_file() and key.partition(".")[0] in task.keys:
            candidates = [(key.partition(".")[2], path)]
        else:
            continue
        for name, file in candidates:
            stem = name.partition(".")[0].removeprefix("sts-")
            if not file.is_file() or not is_table(file):
                continue
            parts["train"] += [file] if stem in TRAIN_FILES else []
            parts["dev"] += [file] if stem in DEV_FILES else []
    if not parts["train"] and not parts["dev"]:
        return None
    if not parts["train"] or not parts["dev"]:
        lacks = "train" if not parts["train"] else "dev (or valid)"
        raise InputError(f"{folder}: {task.name} has no file {lacks}; add it, or take it all out")
    return GlueData(task, parts["train"][0], parts["dev"][0])


def read_part(task: GlueTask, path: Path) -> tuple[list[GlueExample], int]:
    """The examples of a file, and how many rows were left out as they lack fields or a label.

    Raises InputError where its columns aren't the task's.
    """
    is_json = format_of(path) in (".jsonl", ".json", ".ndjson")
    rows = (_json_rows if is_json else _tsv_rows)(task, path)
    examples, broken = [], 0
    for row in rows:
        # MNLI writes - where its annotators didn't agree.
        if row is None or not row.text.strip() or row.label in ("", "-"):
            broken += 1
        else:
            examples.append(row)
    if not examples:
        raise InputError(f"{path} has no labelled examples of {task.name}")
    return examples, broken


def _json_rows(task: GlueTask, path: Path) -> Iterator[GlueExample | None]:
    reader = RowReader(path)
    text, pair, label = _columns(task, path, reader.columns)
    for row in reader:
        values = row.values
        if values.get(text) is None or values.get(label) is None:
            yield None
        else:
            second = None if pair is None else str(values.get(pair) or "")
            yield GlueExample(str(values[text]), second, str(values[label]))


def _tsv_rows(task: GlueTask, path: Path) -> Iterator[GlueExample | None]:
    lines = (line.rstrip("\n").split("\t") for line, _ in text_lines(path, DEFAULT))
    first = next(lines, [])
    if bare := _bare(task, first):
        rows: Iterator[list[str]] = iter([first])
        yield from (_picked(row, bare) for row in (*rows, *lines))
        return
    named = _columns(task, path, first)
    places = [first.index(name) for name in named if name is not None]
    yield from (_picked(row, places) for row in lines)


def _bare(task: GlueTask, first: Sequence[str]) -> tuple[int, ...]:
    """The columns of a file without a header; none where it has one."""
    if set(first) & {*task.text, *task.label}:
        return ()
    fits = [places for size, places in (task.bare or {}).items() if len(first) >= size]
    return fits[0] if fits else ()


def _picked(row: Sequence[str], places: Sequence[int]) -> GlueExample | None:
    if len(row) <= max(places):
        return None
    text, *pair, label = (row[place].strip() for place in places)
    return GlueExample(text, pair[0] if pair else None, label)


def _columns(task: GlueTask, path: Path, names: Sequence[str]) -> tuple[str, str | None, str]:
    """The columns of text, second text and label."""
    found: list[str | None] = []
    for wanted in (task.text, task.pair, task.label):
        taken = next((name for name in wanted if name in names), None)
        if wanted and taken is None:
            raise InputError(
                f"{path}: {task.name} needs a column {' or '.join(wanted)}, and the file has "
                f"{', '.join(names)}"
            )
        found.append(taken)
    return str(found[0]), found[1], str(found[2])


def score(metric: str, given_N: Floats, true_N: Floats) -> float:
    """A metric of predictions: classes as numbers, 1 the positive one of F1."""
    if metric == "spearman":
        return float(np.nan_to_num(spearman(given_N, true_N)))
    if metric == "accuracy":
        return float((given_N == true_N).mean())
    hit = float(((given_N == 1) & (true_N == 1)).sum())
    false = float(((given_N == 1) & (true_N != 1)).sum())
    missed = float(((given_N != 1) & (true_N == 1)).sum())
    if metric == "f1":
        return 2 * hit / (2 * hit + false + missed) if hit else 0.0
    right = len(given_N) - hit - false - missed
    scale = (hit + false) * (hit + missed) * (right + false) * (right + missed)
    return (hit * right - false * missed) / scale**0.5 if scale else 0.0


def interval_of(
    metric: str, given_N: Floats, true_N: Floats, *, resamples: int, seed: int
) -> tuple[float, float]:
    """The interval of a metric by the bootstrap over examples."""
    generator = np.random.default_rng(seed)
    drawn_R = []
    for _ in range(resamples):
        rows = generator.integers(0, len(true_N), len(true_N))
        drawn_R.append(score(metric, given_N[rows], true_N[rows]))
    return percentile_interval(np.array(drawn_R))
