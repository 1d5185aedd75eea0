"""Files of labelled texts: which columns hold what, and their examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from llmctl.config import ColumnName
from llmctl.data.tables.labelled import (
    Columns,
    Example,
    labels_of,
    read_examples,
    resolve_columns,
)
from llmctl.data.tables.labels import doubts, without_label
from llmctl.data.text import hashing
from llmctl.data.text.decoding import DEFAULT, ReadConfig, ReadOptions
from llmctl.errors import InputError
from llmctl.reporting.reporter import Reporter


class LabelledColumns(ReadConfig):
    """Which columns of a table hold what."""

    text_column: ColumnName | None = None
    """The text's column; several, to be joined, are written a,b. Unset: an obvious one, named
    on stderr."""
    text_pair_column: ColumnName | None = None
    """The second text's column, where the task is about two."""
    label_column: ColumnName | None = None
    """The label's column. Unset: an obvious one, named on stderr."""


def resolve_labelled(data: Path, columns: LabelledColumns, reading: ReadOptions) -> Columns:
    """The columns of a file of labelled texts: those named, and the obvious ones.

    Raises InputError for a column that isn't there, UsageError where several would do.
    """
    return resolve_columns(
        data,
        text_column=columns.text_column,
        text_pair_column=columns.text_pair_column,
        label_column=columns.label_column,
        need_label=True,
        reading=reading,
    )


def read_labelled(
    data: Path, columns: Columns, reporter: Reporter, reading: ReadOptions = DEFAULT
) -> list[Example]:
    """The labelled examples of a file. Raises InputError if there are none."""
    examples = list(read_examples(data, columns, reading=reading))
    blank = [example for example in examples if not example.text]
    if blank:
        reporter.note(f"left out {len(blank)} rows without text (the first: {blank[0].source})")
    examples = with_label([example for example in examples if example.text], (), reporter)
    if not examples:
        raise InputError(f"{data} has no labelled texts")
    for doubt in doubts(Counter(example.label or "" for example in examples)):
        reporter.note(doubt)
    return examples


def with_label(
    examples: Sequence[Example], known: Collection[str], reporter: Reporter
) -> list[Example]:
    """Examples without those whose label says that they have none; how many is told.

    known: classes of the model that they are for, if there is one.
    """
    none = without_label({*known, *(example.label or "" for example in examples)})
    left_out = [example for example in examples if example.label == none and none not in known]
    if left_out:
        reporter.note(
            f"left out {len(left_out):,} of {len(examples):,} rows labelled {none}, which means no "
            f"label beside the others (the first: {left_out[0].source})"
        )
        return [example for example in examples if example.label != none]
    return list(examples)


SEPARATORS = ("|", ";", ",")


def find_separator(data: Path, columns: Columns, reading: ReadOptions = DEFAULT) -> str:
    """What stands between the labels of a text: the first of ``SEPARATORS`` that is in one; of
    lists, and where none is, the first."""
    # A line end divides nothing: lists come as they are, other cells whole.
    whole = replace(columns, separator="\n")
    cells = [labels_of(example.label) for example in read_examples(data, whole, reading=reading)]
    single = [cell[0] for cell in cells if len(cell) == 1]
    if any(len(cell) > 1 for cell in cells):
        single = []
    return next((s for s in SEPARATORS if any(s in cell for cell in single)), SEPARATORS[0])


def is_held_out(example: Example, share: float) -> bool:
    """Whether an example falls to validation: by its text's hash, whatever the order."""
    return hashing.is_held_out(f"{example.text}\x1f{example.text_pair or ''}", share)
