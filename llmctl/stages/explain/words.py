"""Explain: which words of a text decided what a model answered, and how far that can be believed.

N texts, W words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.attribution import ATTRIBUTION_METHODS
from llmctl.attribution.explained import ExplainedText, Floats
from llmctl.attribution.faithfulness import Curves, Faithfulness
from llmctl.data.tables.labelled import Columns, Example, read_examples, resolve_columns
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.evaluation.bootstrap import percentile_interval
from llmctl.formats.description import MODEL_KINDS
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.explanation import ExplainedAnswer, Explainer
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Workspace

RESAMPLES = 1000


@dataclass(frozen=True)
class Weighed:
    """The weights of a method for one text."""

    weights_W: Floats
    faithfulness: Faithfulness
    facts: Mapping[str, float]


@dataclass(frozen=True)
class Explanation:
    """What decided the answer to a text, by each method, the most faithful first."""

    text: ExplainedText
    methods: Mapping[str, Weighed]

    @property
    def best(self) -> str:
        """The method that is most faithful here."""
        return next(iter(self.methods))

    def record(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        words = [
            {
                "text": self.text.text[begin:end],
                "start": begin,
                "end": end,
                "weights": {
                    name: float(weighed.weights_W[number]) for name, weighed in self.methods.items()
                },
            }
            for number, (begin, end) in enumerate(self.text.words)
        ]
        return {
            "text": self.text.text,
            "answer": self.text.answer,
            **self.text.facts,
            "best_method": self.best,
            "words": words,
            "methods": {
                name: {**weighed.faithfulness.record(), **weighed.facts}
                for name, weighed in self.methods.items()
            },
        }


def open_explainer(
    workspace: Workspace, start: str, asked: ExplainedAnswer, *, device: str = "auto"
) -> Explainer:
    """A model that is ready to be explained. Raises InputError if there is none, or its answers
    are no function of tokens."""
    model = OpenedModel.open(workspace, start)
    explainer = TASKS[model.kind].explainer()
    if explainer is None:
        kinds = [MODEL_KINDS[n] for n, t in TASKS.items() if t.explainer() is not None]
        raise InputError(
            f"{start} is {model.described}, whose answers are not explained yet; give one of: "
            f"{', '.join(kinds)}"
        )
    return explainer(model, asked, device)


def methods_named(names: Sequence[str]) -> list[str]:
    """Methods by their names; all where none is given. Raises UsageError for an unknown one."""
    for name in names:
        if name not in ATTRIBUTION_METHODS:
            raise UsageError(
                f"--method {name}: there is no such method"
                f"{did_you_mean(name, ATTRIBUTION_METHODS)}; choose from "
                f"{', '.join(ATTRIBUTION_METHODS)}"
            )
    return list(dict.fromkeys(names)) or list(ATTRIBUTION_METHODS)


def texts_explained(
    explainer: Explainer, examples: Iterable[Example], reporter: Reporter | None = None
) -> Iterator[ExplainedText]:
    """Texts with their answers.

    reporter: is told how many of a file can't be explained, which are left out. Raises InputError
    for a text that can't be, where there is no reporter, or where none of them can.
    """
    first: InputError | None = None
    left_out = count = 0
    for example in examples:
        try:
            text = explainer.explained(example)
        except InputError as error:
            if reporter is None:
                raise
            first, left_out = first or error, left_out + 1
            continue
        count += 1
        yield text
    if first is not None and not count:
        raise first
    if first is not None and reporter is not None:
        reporter.note(f"left out {left_out:,} of {left_out + count:,} texts (the first: {first})")


def explain(
    texts: Iterable[ExplainedText],
    names: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Iterator[Explanation]:
    """What decided the answer to each text.

    names: methods, all that the model can have by default. Raises InputError for a method by name
    that the model can't have.
    """
    told: set[str] = set()
    for text in texts:
        curves, found = Curves(text), {}
        for name in methods_named(names):
            method = ATTRIBUTION_METHODS[name]()
            try:
                weights_W = method.weights(text)
            except InputError as error:
                if names:
                    raise
                if name not in told and reporter is not None:
                    reporter.note(f"without {name}: {error}")
                told.add(name)
                continue
            found[name] = Weighed(weights_W, curves.of(weights_W), method.facts())
        best_first = sorted(found, key=lambda name: -found[name].faithfulness.better)
        yield Explanation(text, {name: found[name] for name in best_first})


def over_texts(explanations: Sequence[Explanation]) -> dict[str, dict[str, float]]:
    """The mean faithfulness of each method over texts with its interval of 95 %, best first."""
    generator = np.random.default_rng(0)
    drawn_RN = generator.integers(len(explanations), size=(RESAMPLES, len(explanations)))
    result = {}
    for name in ATTRIBUTION_METHODS:
        if all(name in one.methods for one in explanations):
            values_N = np.array([one.methods[name].faithfulness.better for one in explanations])
            low, high = percentile_interval(values_N[drawn_RN].mean(1))
            result[name] = {"faithfulness": float(values_N.mean()), "low": low, "high": high}
    return dict(sorted(result.items(), key=lambda entry: -entry[1]["faithfulness"]))


def texts_of_file(
    explainer: Explainer, path: Path, requested: LabelledColumns, reporter: Reporter
) -> Iterator[Example]:
    """The texts of a file. Raises InputError or UsageError where it has none that would do."""
    reading = requested.read_options(reporter.note)
    columns: Columns = resolve_columns(
        path,
        text_column=requested.text_column,
        text_pair_column=requested.text_pair_column,
        need_label=False,
        reading=reading,
    )
    return read_examples(path, columns, reading=reading)
