"""Measure classifiers on texts whose terms are swapped: ``llmctl eval --suite bias`` of a
classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.labelled import Example, read_examples
from llmctl.data.text.decoding import DEFAULT
from llmctl.data.text.input_files import data_record
from llmctl.data.text.words import is_unspaced
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.bootstrap import paired_difference
from llmctl.evaluation.ordinal import median_class
from llmctl.evaluation.report import MODEL, Figure, Report, share
from llmctl.evaluation.suites.bias.counterfactual import (
    BUNDLED,
    Terms,
    change_figures,
    read_terms,
    true_positive_gaps,
)
from llmctl.formats.columns import labelled_columns
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.evaluate import encoded_probabilities, options_for, places_of
from llmctl.tasks.classify.labels import gives_several, is_ordinal
from llmctl.tasks.evaluation import FOR_LANGUAGE_MODELS, FOR_SOURCES, Evaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.suites.bias import CLASSIFIERS, COUNTERFACTUAL_REPORT

ALL = "all"
EXPLAINED = (
    "changed: how often the answer is another when the text's terms are swapped for those of the "
    "other group, 0 % at best; shift: how much the probability of the answer moves on average"
)
RATES_EXPLAINED = (
    "true-positive rates: of the texts of a class, how many are found, among those that tell of "
    "the first group alone and of the second (95 %, Newcombe 1998), and of all texts with terms, "
    "rewritten for either group, in points; 0 would be equal opportunity (Hardt et al. 2016)"
)
FIGURES = (
    Figure("texts", "texts", ","),
    share("changed (95 %)", "changed", "interval"),
    Figure("shift (95 %)", "shift", ".3f", "shift_interval", ".3f"),
)


class CounterfactualEvaluator(Evaluator):
    """Texts with swapped terms under classifiers."""

    kinds = CLASSIFIERS
    reports = (COUNTERFACTUAL_REPORT,)
    measures_bias = True

    def choose(self) -> None:
        """Read the terms, and find the texts."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task", "scoring", "dtype")
        if self.files.data is None:
            raise UsageError(
                f"--suite bias: {self.model.name} is a classifier; give texts whose terms are "
                "swapped, --data FILE (labelled, if true-positive rates are wanted), and if you "
                "like --terms FILE with pairs of terms"
            )
        for model in self.models.values():
            if model.kind not in self.kinds or gives_several(model.folder):
                raise UsageError(
                    f"--suite bias of a classifier compares answers of one label, and {model.name} "
                    f"is {model.described}"
                    + (" of several labels" if gives_several(model.folder) else "")
                    + "; give a classifier of one label"
                )
        self.data = data_record(self.path)
        self.terms = None
        if self.files.terms is not None:
            self.terms = read_terms(self.files.terms, self.config.read_config().read_options())

    def run(self, reporter: Reporter) -> Report:
        """Ask each model of the texts with terms, of both versions."""
        examples, labelled = self._texts(reporter)
        texts = [joined_texts(example) for example in examples]
        notes = []
        terms = self.terms
        if terms is None:
            language = "zh" if is_unspaced(texts[:1000]) else "en"
            terms = read_terms(BUNDLED / f"{language}.tsv", DEFAULT)
            notes.append(
                f"the terms are llmctl's own short list ({language}), and tell nothing of others; "
                "give yours with --terms FILE"
            )
        found = [terms.found(text) for text in texts]
        kept = [number for number, here in enumerate(found) if here]
        if not kept:
            raise InputError(
                f"none of the {len(examples):,} texts of {self.path} has any of the terms; give "
                "others with --terms FILE"
            )
        if not labelled:
            notes.append(f"{self.path.name} has no labels, so true-positive rates are left out")
        asked = [examples[number] for number in kept]
        labels = self.model.folder.labels or []
        true_N = np.array([_number(example.label, labels) for example in asked])
        results = {}
        for row, model in self.models.items():
            answered = _Asked(model, labels, asked, terms, self.config.device, notes)
            results[row] = {
                "changes": {
                    kind: answered.changes([found[number] for number in kept], kind)
                    for kind in (ALL, *terms.kinds)
                },
                "rates": {
                    kind: answered.rates([found[number] for number in kept], kind, true_N)
                    for kind in terms.kinds
                }
                if labelled
                else {},
            }
            reporter.progress(f"texts to {model.name}", len(asked), len(asked))
        changed = results[MODEL]["changes"][ALL]
        return Report(
            task=COUNTERFACTUAL_REPORT,
            data=str(self.path),
            facts={"texts": len(examples), "with_terms": len(kept), "labels": list(labels)},
            results=results,
            notes=notes,
            summary={"changed": changed["changed"], "shift": changed["shift"]},
        )

    def _texts(self, reporter: Reporter) -> tuple[list[Example], bool]:
        """The texts, and whether they have labels."""
        reading = self.read_options(reporter, as_trained=True)
        options, labelled = options_for(self.config), True

        def columns(need_label: bool) -> Any:
            return labelled_columns(
                self.model, self.path, options, need_label=need_label, reading=reading,
                note=reporter.note if need_label else lambda text: None,
            )  # fmt: skip

        try:
            taken = columns(True)
        except (InputError, UsageError):
            if options.label_column is not None:
                raise
            # Texts alone will do; what is wrong with them is said now.
            taken, labelled = columns(False), False
        limit = self.config.limit
        examples = [one for one in read_examples(self.path, taken, reading=reading) if one.text]
        return examples[:limit], labelled and taken.label is not None

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """How often answers change, by kinds of terms, and the rates of both groups."""
        facts = report.facts
        for name, row in report.results.items():
            yield ReportTable(
                f"{report.shown(name)}: swapped terms in {facts['with_terms']:,} of "
                f"{facts['texts']:,} texts",
                [figure.heading for figure in FIGURES],
                [
                    [kind, *(figure.cell(entry) for figure in FIGURES)]
                    for kind, entry in row["changes"].items()
                    if entry["texts"]
                ],
            )
            yield EXPLAINED
            if rows := list(_rate_rows(row["rates"])):
                yield ReportTable(
                    f"{report.shown(name)}: true-positive rates, first group less second",
                    ["found", "as written", "rewritten"],
                    rows,
                )
                yield RATES_EXPLAINED


def _rate_rows(rates: Mapping[str, Any]) -> Iterator[list[str]]:
    for kind, by_class in rates.items():
        for label, entry in by_class.items():
            written, rewritten = entry["written"], entry["rewritten"]
            if written["difference"] is None and rewritten is None:
                continue
            counts = (
                f"{round((rate or 0) * total):,} of {total:,}"
                for rate, total in zip(written["rates"], written["texts"], strict=True)
            )
            yield [f"{kind}: {label}", " / ".join(counts), _points(written), _points(rewritten)]


def _points(gap: Mapping[str, Any] | None) -> str:
    """A difference of rates in points, in few letters."""
    if gap is None or gap["difference"] is None:
        return "–"
    value, low, high = (100 * gap[key] for key in ("difference", "low", "high"))
    return f"{value:+.1f} ({low:+.0f} to {high:+.0f})"


class _Asked:
    """A model's answers to texts with terms, in each version that is asked for."""

    def __init__(
        self,
        model: OpenedModel,
        labels: Sequence[str],
        examples: Sequence[Example],
        terms: Terms,
        device: str,
        notes: list[str],
    ) -> None:
        self._model, self._labels, self._examples = model, labels, examples
        self._terms, self._device = terms, device
        self._places = places_of(model, labels)
        self._before_NC = self._probabilities(examples, notes)

    def changes(self, found: Sequence[Sequence[Any]], kind: str) -> dict[str, Any]:
        """What changes when terms are swapped, of texts that have some of the kind."""
        only = None if kind == ALL else kind
        rows_N = np.array([only is None or any(t.kind == only for t in here) for here in found])
        before_NC = self._before_NC[rows_N]
        swapped = self._rewritten(rows_N, only, None)
        after_NC = self._probabilities(swapped, []) if swapped else before_NC
        return change_figures(before_NC, after_NC, self._given(before_NC), self._given(after_NC))

    def rates(
        self, found: Sequence[Sequence[Any]], kind: str, true_N: NDArray[np.int64]
    ) -> dict[str, Any]:
        """True-positive rates by classes, of texts as written and rewritten for both groups."""
        sides = [{term.side for term in here if term.kind == kind} for here in found]
        side_N = np.array([next(iter(here)) if len(here) == 1 else -1 for here in sides])
        own_N = np.array([bool(here) for here in sides])
        written = true_positive_gaps(true_N, self._given(self._before_NC), side_N, self._labels)
        if not own_N.any():
            return {label: {"written": gap, "rewritten": None} for label, gap in written.items()}
        versions = [
            self._given(self._probabilities(self._rewritten(own_N, kind, side), []))
            for side in (0, 1)
        ]
        result = {}
        for number, label in enumerate(self._labels):
            of_class = true_N[own_N] == number
            right = [version[of_class] == number for version in versions]
            gap = paired_difference(*right) if of_class.any() else None
            result[label] = {"written": written[label], "rewritten": gap}
        return result

    def _rewritten(self, rows_N: NDArray[np.bool_], kind: str | None, side: int | None) -> Any:
        return [
            replace(
                example,
                text=self._terms.swap(example.text, kind, side),
                text_pair=example.text_pair and self._terms.swap(example.text_pair, kind, side),
            )
            for example, own in zip(self._examples, rows_N, strict=True)
            if own
        ]

    def _probabilities(self, examples: Sequence[Example], notes: list[str]) -> Any:
        found_NC = encoded_probabilities(self._model, examples, self._device, notes)
        return found_NC[:, self._places]

    def _given(self, probabilities_NC: Any) -> NDArray[np.int64]:
        if is_ordinal(self._model.folder):
            return median_class(probabilities_NC)
        given_N: NDArray[np.int64] = probabilities_NC.argmax(-1)
        return given_N


def joined_texts(example: Example) -> str:
    """The texts of an example, a line each."""
    return f"{example.text}\n{example.text_pair or ''}"


def _number(label: str | None, labels: Sequence[str]) -> int:
    return labels.index(label) if label in labels else -1
