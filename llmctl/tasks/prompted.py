"""Predict by asking: a template, and the labels' words that a model chooses from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llmctl.config import Config
from llmctl.data.tables.labelled import Columns, Example
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError, UsageError
from llmctl.inference.prompts import Shots, find_columns, read_rows
from llmctl.inference.templates import (
    TEXT,
    PromptRow,
    PromptTemplate,
    Verbalizer,
    read_template,
    read_templates,
)
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.asking import ROWS_AHEAD, Asked, Asker, answers, probabilities_of, search
from llmctl.tasks.classify.predict import Prediction
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prediction import Predictor

OWN_WORDS = "--labels goes with --template; without one labels are written as the model learned"


class Asking(Config):
    """How a model is asked: by which template, and which labels there are."""

    template: str | None = None
    """A template's file, or written out."""
    templates: Path | None = None
    """Templates, of which the best on ``dev`` is taken."""
    dev: Path | None = None
    """Labelled rows by which one of several templates is chosen."""
    labels: Verbalizer = Field({})
    """How labels are written. Unset: as the template says."""
    score: Literal["plain", "tokens", "bytes", "pmi"] = "plain"
    """What chooses an answer."""
    examples: Path | None = None
    """Labelled rows that solved examples in prompts are drawn from."""
    shots: int = Field(0, ge=0)
    """Solved examples in a prompt."""
    seed: int = 0
    """Seed of the examples in prompts."""

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return self != Asking()

    def check(self) -> None:
        """Raises UsageError where options don't go together."""
        if self.template is not None and self.templates is not None:
            raise UsageError(
                "--template gives one, and --templates some to choose from; give either"
            )
        if (self.templates is None) != (self.dev is None):
            raise UsageError(
                "--templates FILE and --dev FILE go together: a template is chosen by labelled rows"
            )
        if (self.examples is None) == bool(self.shots):
            raise UsageError("--shots N and --examples FILE go together; give both or neither")


class PromptedPredictor(Predictor):
    """A model that is ready to be asked about texts."""

    def __init__(
        self, model: OpenedModel, asker: Asker, asking: Asking, reporter: Reporter | None = None
    ) -> None:
        """Raises InputError where the template doesn't go with the model, UsageError where labels
        aren't told."""
        super().__init__(model)
        self._asker, self._asking = asker, asking
        asking.check()
        self.template = self._chosen(reporter or Reporter())
        self.labels = list(self.template.verbalizer)
        if not self.labels and asking.dev is not None:
            self.labels = sorted({row.label or "" for row in self._dev(self.template)})
        if len(self.labels) < 2:
            raise UsageError(
                "which labels there are is not said: give --labels a,b, or label=word,label=word, "
                "or a [verbalizer] in the template's file"
            )

    def own_template(self) -> PromptTemplate | None:
        """The template that the model keeps, if it does."""
        return None

    def _chosen(self, reporter: Reporter) -> PromptTemplate:
        asking = self._asking
        if asking.templates is None:
            template = (
                self.own_template()
                if asking.template is None
                else read_template(asking.template, asking.labels)
            )
            if asking.template is None and asking.labels:
                raise UsageError(OWN_WORDS)
            if template is None:
                raise UsageError("give the template that asks, --template")
            self._asker.check(template)
            return template
        templates = read_templates(asking.templates, asking.labels)
        for template in templates:
            self._asker.check(template)
        best, tried = search(templates, self._right, reporter)
        for one in tried:
            low, high = one["interval"]
            reporter.note(
                f"{one['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {one['total']:,} rows: "
                f"{one['template']!r}{', taken' if one['chosen'] else ''}"
            )
        return best.template

    def _dev(self, template: PromptTemplate) -> list[PromptRow]:
        assert self._asking.dev is not None
        return self._labelled(self._asking.dev, template)

    def _labelled(self, path: Path, template: PromptTemplate) -> list[PromptRow]:
        columns = find_columns(path, template, need_label=True)
        return list(read_rows(path, template, columns))

    def _right(self, template: PromptTemplate) -> NDArray[np.bool_]:
        """Which of the development rows a template gets right."""
        rows = self._dev(template)
        labels = list(template.verbalizer) or sorted({row.label or "" for row in rows})
        asked = Asked(template, rows, [], labels)
        asked.check_choices()
        right_N: NDArray[np.bool_] = self._probabilities(asked, Reporter()).argmax(-1) == asked.gold
        return right_N

    def _probabilities(self, asked: Asked, reporter: Reporter) -> NDArray[np.float64]:
        asking, template = self._asking, asked.template
        solved = [] if asking.examples is None else self._labelled(asking.examples, template)
        shots = Shots(template, solved, asking.seed)
        outcomes, notes = answers(
            self._asker, self.model.name, asking.shots, asked, shots, Reporter()
        )
        for note in notes:
            reporter.note(note)
        return probabilities_of(outcomes, self._asking.score)

    def alone(self, texts: Sequence[str]) -> Iterator[Any]:
        if missing := self.template.fields - {TEXT}:
            raise UsageError(
                f"the template asks for {', '.join(sorted(missing))}, and one text alone has none; "
                "give a table, --data FILE"
            )
        return (PromptRow({TEXT: text}, None, f"text {n}") for n, text in enumerate(texts, 1))

    def of_file(
        self, path: Path, requested: LabelledColumns, reporter: Reporter | None = None
    ) -> Iterator[Any]:
        reporter = reporter or Reporter()
        reading = requested.read_options(reporter.note)
        return read_rows(
            path, self.template, self.columns(path, requested, reading, reporter), reading=reading
        )

    def columns(
        self, path: Path, requested: LabelledColumns, reading: ReadOptions, reporter: Reporter
    ) -> Columns:
        """Those that are given, and those that the template asks for."""
        columns = find_columns(
            path,
            self.template,
            text_column=requested.text_column,
            text_pair_column=requested.text_pair_column,
            need_label=False,
            reading=reading,
        )
        if columns.text:
            reporter.note(f"{path.name}: {columns.describe()}")
        return columns

    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Prediction]:
        """The labels of each row, all of them with their probabilities."""
        rows: Iterator[Any] = iter(examples)
        while block := list(islice(rows, ROWS_AHEAD)):
            asked = Asked(self.template, block, [], self.labels)
            found_NC = self._probabilities(asked, reporter or Reporter())
            for row, found_C in zip(block, found_NC.tolist(), strict=True):
                ranked = sorted(zip(self.labels, found_C, strict=True), key=lambda pair: -pair[1])
                text = str(row.values.get(TEXT, self.template.question(row)))
                yield Prediction(text, row.values.get("text_pair"), ranked[0][0], dict(ranked))


def open_asked(
    model: OpenedModel, asking: Asking, device: str, asker: type[Any] | None, reporter: Reporter
) -> PromptedPredictor:
    """A model that is ready to be asked. asker: what asks such models, if anything does; else an
    InputError says so."""
    if asker is None:
        raise InputError(
            f"--template asks what word stands in a text, and {model.name} is {model.described}; "
            "give a language model or a masked one"
        )
    return PromptedPredictor(model, asker(model, device), asking, reporter)
