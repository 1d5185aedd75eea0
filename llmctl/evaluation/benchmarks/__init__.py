"""Tasks for language models that have not been finetuned: a file each, and rows known by their
columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.errors import InputError
from llmctl.evaluation.benchmarks.base import Benchmark
from llmctl.evaluation.benchmarks.last_word import LAST_WORD
from llmctl.evaluation.benchmarks.minimal_pairs import MINIMAL_PAIRS
from llmctl.evaluation.benchmarks.multiple_choice import MULTIPLE_CHOICE
from llmctl.evaluation.choices import Question

BENCHMARKS = {task.name: task for task in (LAST_WORD, MULTIPLE_CHOICE, MINIMAL_PAIRS)}
BENCHMARK_COLUMNS = frozenset(
    name for task in BENCHMARKS.values() for names in task.layouts for name in names
)
"""Columns by which a CSV's first row is known as its header."""


def recognise(columns: Sequence[str]) -> Benchmark | None:
    """The task that a table's columns show, where it is obvious."""
    return next((t for t in BENCHMARKS.values() if t.obvious and t.layout(columns)), None)


def read_questions(
    task: Benchmark, path: Path, *, reading: ReadOptions = DEFAULT
) -> list[Question]:
    """The questions of a file. Raises InputError if there are none, or a row isn't the task's."""
    reader = RowReader(path, known=BENCHMARK_COLUMNS, reading=reading)
    if not reader.columns:
        raise InputError(f"{path} has no rows; give a file with questions")
    read = task.layout(reader.columns)
    if read is None:
        layouts = "; or ".join(", ".join(sorted(names)) for names in task.layouts)
        raise InputError(
            f"{path} has the columns {', '.join(reader.columns)}, and --task {task.name} needs "
            f"{layouts}"
        )
    return [read(row) for row in reader]
