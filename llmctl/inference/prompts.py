"""Prompts of the rows of a table, by a template (``llmctl/inference/templates.py``), with solved
ones before them as examples (Brown et al. 2020, "few-shot").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmctl.data.random import key_of, permute
from llmctl.data.tables.labelled import (
    LABEL_NAMES,
    LABELLED_COLUMNS,
    Columns,
    example_of,
    read_examples,
    resolve_columns,
)
from llmctl.data.tables.rows import RowReader
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import is_table
from llmctl.errors import UsageError
from llmctl.inference.templates import TEXT, TEXT_PAIR, PromptRow, PromptTemplate

DRAWN_BESIDE = 8
"""Examples drawn beyond those that are wanted, as one of them may be the question itself."""


Fits = Callable[["PromptRow", str], bool]
"""Whether a model can read the prompt of a row."""


@dataclass(frozen=True)
class TemplatedPrompt:
    """The prompt of a row."""

    text: str
    row: PromptRow
    dropped: int
    """Examples that did not fit."""


def find_columns(
    path: Path,
    template: PromptTemplate,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    need_label: bool,
    reading: ReadOptions = DEFAULT,
) -> Columns:
    """The columns that hold what a template calls ``text``, ``text_pair`` and ``label``: those
    given, and those that it asks for and a file has under other names.

    Raises InputError for a column that isn't there, UsageError where several would do.
    """
    names: list[str] = []
    if is_table(path):
        requested = (text_column, text_pair_column, label_column)
        names = _reader(path, template, requested, reading).columns
    label = label_column or next((name for name in names if name.lower() in LABEL_NAMES), None)
    named = text_column or text_pair_column
    unnamed = template.fields & {TEXT, TEXT_PAIR} - set(names)
    if named or unnamed or (need_label and label not in names):
        return resolve_columns(
            path,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            need_label=need_label,
            reading=reading,
        )
    return Columns((), None, label if need_label else None)


def read_rows(
    path: Path, template: PromptTemplate, columns: Columns, *, reading: ReadOptions = DEFAULT
) -> Iterator[PromptRow]:
    """The rows of a table, or the lines of a text, for a template."""
    if not is_table(path):
        for example in read_examples(path, columns, reading=reading):
            yield PromptRow({TEXT: example.text}, None, example.source)
        return
    wanted = (*columns.text, columns.text_pair, columns.label)
    reader = _reader(path, template, wanted, reading)
    for row in reader:
        example = example_of(row, columns)
        # Numbers are no names that a template could ask for.
        values = dict(row.values) if reader.has_header else {}
        if columns.text:
            values[TEXT] = example.text
        if columns.text_pair:
            values[TEXT_PAIR] = example.text_pair
        yield PromptRow(values, example.label, row.source)


class Shots:
    """Solved examples, drawn for each question anew."""

    def __init__(self, template: PromptTemplate, rows: Sequence[PromptRow], seed: int) -> None:
        self._questions = [template.question(row) for row in rows]
        self._solved = [template.solved(row) for row in rows]
        self._seed = seed

    def draw(self, number: int, question: str, count: int) -> list[str]:
        """``count`` examples for a question by its number: none is the question itself, no two are
        alike, and fewer are the first of more.

        Raises UsageError if there are too few.
        """
        total, begin = len(self._solved), 0
        key = key_of(self._seed, "shots", number)
        chosen: dict[str, str] = {}
        while len(chosen) < count and begin < total:
            # Twice as many each time: where most are alike, all may have to be looked at.
            stop = min(total, begin + max(begin, count + DRAWN_BESIDE))
            for place in permute(key, total, np.arange(begin, stop)).tolist():
                if self._questions[place] != question:
                    chosen.setdefault(self._questions[place], self._solved[place])
            begin = stop
        if len(chosen) < count:
            raise UsageError(
                f"--shots {count}: there are only {len(chosen)} examples that differ from the "
                "question and from one another; give more --examples, or ask for fewer"
            )
        return list(chosen.values())[:count]


def write_prompts(
    template: PromptTemplate, rows: Iterable[PromptRow], shots: Shots, count: int, fits: Fits
) -> Iterator[TemplatedPrompt]:
    """The prompt of each row, with ``count`` examples or as many as fit: the first are dropped, so
    that the instruction and the question stay. ``fits`` isn't asked where no example is left."""
    for number, row in enumerate(rows):
        question = template.question(row)
        kept = shots.draw(number, question, count)
        while kept and not fits(row, template.prompt(kept, question)):
            kept = kept[1:]
        yield TemplatedPrompt(template.prompt(kept, question), row, count - len(kept))


def _reader(
    path: Path, template: PromptTemplate, requested: Sequence[str | None], reading: ReadOptions
) -> RowReader:
    known = LABELLED_COLUMNS | {field.lower() for field in template.fields}
    return RowReader(path, requested=requested, known=known, reading=reading)
