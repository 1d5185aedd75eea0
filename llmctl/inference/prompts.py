"""Prompts from a template: a row of a table as a question, with solved ones before it as examples
(Brown et al. 2020, "few-shot").

A template is a small TOML file. ``input`` is the question and ``target`` what answers it, Jinja2
templates of a row's columns; of the row that is asked, the target is left out:

    input = "Review: {{ text }}\\nSentiment:"
    target = " {{ label }}"              # also the default
    separator = "\\n\\n"                   # between examples; also the default
    instruction = "Classify the review." # before them all; by default nothing
    prior = "Sentiment:"                 # what the answer alone stands behind, for its prior

    [verbalizer]                         # how a label is written; by default as it is
    0 = "negative"
    1 = "positive"

Beside a file's own columns there are ``text`` and ``text_pair``, the columns that hold them by
whatever name, and in the target ``label``, as the verbalizer writes it. ``prior`` is by default
what the input ends with behind its last field. Nothing is added between the parts: a space before
the answer is written in ``target``. A template can't call out of its sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.meta import find_undeclared_variables
from pydantic import Field

from llmctl.config import Config, build
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
from llmctl.errors import ConfigError, InputError, UsageError, did_you_mean
from llmctl.parsing import Malformed, parse_toml
from llmctl.tokenizers.sandbox import BoundedEnvironment

TEXT, TEXT_PAIR, LABEL = "text", "text_pair", "label"
DRAWN_BESIDE = 8
"""Examples drawn beyond those that are wanted, as one of them may be the question itself."""


class TemplateFile(Config):
    """The keys of a template's file."""

    input: str = Field(min_length=1)
    """The question."""
    target: str = Field(" {{ label }}", min_length=1)
    """Its answer."""
    separator: str = "\n\n"
    """Between examples."""
    instruction: str = ""
    """Before all of them."""
    prior: str | None = None
    """What an answer stands behind where there is no question."""
    verbalizer: dict[str, str] = Field({})
    """How each label is written."""


Fits = Callable[["PromptRow", str], bool]
"""Whether a model can read the prompt of a row."""


@dataclass(frozen=True)
class PromptRow:
    """A row of a table, for a template to fill in."""

    values: Mapping[str, Any]
    label: str | None
    source: str


@dataclass(frozen=True)
class TemplatedPrompt:
    """The prompt of a row."""

    text: str
    row: PromptRow
    dropped: int
    """Examples that did not fit."""


class PromptTemplate:
    """A template that has been read and parsed."""

    def __init__(self, file: TemplateFile, path: Path) -> None:
        """Raises InputError for what is not Jinja2."""
        self.path, self.file = path, file
        self._environment = BoundedEnvironment(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            # A cell without a value is an empty text, as it is wherever tables are read.
            finalize=lambda value: "" if value is None else value,
        )
        self._input, self.input_fields = self._parsed("input", file.input)
        self._target, self.target_fields = self._parsed("target", file.target)
        self.verbalizer = dict(file.verbalizer)

    @property
    def fields(self) -> set[str]:
        """What it asks of a row, the label aside."""
        return self.input_fields | (self.target_fields - {LABEL})

    @property
    def tells_label(self) -> bool:
        """Whether solved examples need labels."""
        return LABEL in self.target_fields

    @property
    def prior(self) -> str:
        """What an answer stands behind where there is no question."""
        if self.file.prior is not None:
            return self.file.prior
        return self.file.input.rpartition("}")[2].lstrip()

    def question(self, row: PromptRow) -> str:
        """The input of a row. Raises InputError naming a column that isn't there."""
        return self._render(self._input, self.input_fields, row, row.label)

    def answer(self, row: PromptRow, label: str | None) -> str:
        """The target of a row, with a label. Raises InputError for one that is unknown."""
        return self._render(self._target, self.target_fields, row, label)

    def prompt(self, shots: Sequence[str], question: str) -> str:
        """Solved examples and a question as one text."""
        parts = [self.file.instruction] if self.file.instruction else []
        return self.file.separator.join([*parts, *shots, question])

    def _written(self, label: str, row: PromptRow) -> str:
        if self.verbalizer and label not in self.verbalizer:
            raise InputError(
                f"{row.source}: the verbalizer of --template {self.path} has no {LABEL} {label!r}"
                f"{did_you_mean(label, self.verbalizer)}; it has {', '.join(self.verbalizer)}"
            )
        return self.verbalizer.get(label, label)

    def _parsed(self, key: str, source: str) -> tuple[jinja2.Template, set[str]]:
        try:
            fields = find_undeclared_variables(self._environment.parse(source))
            return self._environment.from_string(source), fields
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"--template {self.path}: {key}, line {error.lineno}, is not Jinja2: "
                f"{error.message}"
            ) from None

    def _render(
        self,
        template: jinja2.Template,
        fields: set[str],
        row: PromptRow,
        label: str | None,
    ) -> str:
        values = dict(row.values)
        if label is not None:
            values[LABEL] = self._written(label, row)
        self._environment.begin()
        try:
            return template.render(values)
        except jinja2.UndefinedError as error:
            missing = sorted(fields - values.keys())
            if not missing:
                raise InputError(f"{row.source}: --template {self.path}: {error.message}") from None
            raise InputError(
                f"{row.source}: --template {self.path} asks for {missing[0]}"
                f"{did_you_mean(missing[0], values)}, and the row has {', '.join(values)}"
            ) from None
        except Exception as error:  # what a template computes can fail in any way
            raise InputError(f"{row.source}: --template {self.path} fails: {error}") from None


def read_template(path: Path) -> PromptTemplate:
    """Read a template's file. Raises InputError, naming the key, if it is malformed."""
    try:
        table = parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"--template {path}: no such file") from None
    except OSError as error:
        raise InputError(f"--template {path} can't be read: {error}") from None
    except Malformed as error:
        raise InputError(
            f'--template {path} is not TOML: {error}; write input = "Review: {{{{ text }}}}"'
        ) from None
    try:
        return PromptTemplate(build(TemplateFile, table), path)
    except ConfigError as error:
        raise InputError(f"--template {path}: {error}") from None


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
        self._solved = [
            question + template.answer(row, row.label)
            for question, row in zip(self._questions, rows, strict=True)
        ]
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
