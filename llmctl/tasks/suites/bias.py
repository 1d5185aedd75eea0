"""Measure how biased models are: ``llmctl eval --suite bias``. Language models and those that find
hidden tokens by published sets of tests, classifiers by swapped terms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.errors import UsageError
from llmctl.evaluation.report import Report
from llmctl.evaluation.suites.bias import BIAS_SETS, find_set
from llmctl.evaluation.suites.bias.base import Answers, BiasSet, ScoredChoice
from llmctl.inference.scoring import QUERIES_AHEAD, encode_query
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.suites.scoring import TextEvaluator
from llmctl.workspace.files import sha256_file, sha256_json
from llmctl.workspace.manifests import InputRecord

BIAS_REPORT = "suite-bias"
CLASSIFIERS = ("classify", "setfit")
COUNTERFACTUAL_REPORT = "suite-counterfactual"
"""The kind of report that classifiers have."""


class BiasEvaluator(TextEvaluator):
    """Published sets of tests under models that score texts."""

    kinds = (*TextEvaluator.kinds, *CLASSIFIERS)
    reports = (BIAS_REPORT, COUNTERFACTUAL_REPORT)
    measures_bias = True

    @classmethod
    def for_model(cls, model: OpenedModel) -> Any:
        """Swapped terms, for a classifier."""
        from llmctl.tasks.suites.counterfactual import CounterfactualEvaluator

        return CounterfactualEvaluator if model.kind in CLASSIFIERS else cls

    def predicts_text(self, model: OpenedModel) -> bool:
        return model.kind in TextEvaluator.kinds

    def choose(self) -> None:
        """Find the set, by its files."""
        super().choose()
        if self.files.terms is not None:
            raise UsageError(
                f"--terms is for classifiers, and {self.model.name} is {self.model.described}; "
                "leave it out, and give the files of a set of tests"
            )
        if self.files.data is None:
            known = ", ".join(kind.title for kind in BIAS_SETS.values())
            raise UsageError(f"--suite bias: give the files of a set of tests ({known})")
        reading = self.config.read_config().read_options()
        kind, place = find_set(self.path, reading)
        for model in self.models.values():
            if not kind.for_masked and self.scoring_of(model) != "causal":
                raise UsageError(
                    f"{self.path} has {kind.title}, whose questions are answered behind a text, "
                    f"and {model.name} is {model.described}; give a language model"
                )
        self.set: BiasSet = kind(place, reading, self.config.limit)
        self.data = record_of(place)

    def run(self, reporter: Reporter) -> Report:
        """Ask each model the same questions."""
        notes = self.set.notes()
        if self.config.limit is not None:
            notes.append(f"only the first {self.config.limit:,} of each part were asked (--limit)")
        results = {
            row: self.set.figures(
                {
                    scoring: self._answers(model, scoring, notes, reporter)
                    for scoring in self.set.scorings(self.scoring_of(model))
                }
            )
            for row, model in self.models.items()
        }
        return Report(
            task=BIAS_REPORT,
            data=str(self.path),
            facts={"set": self.set.name, **self.set.facts()},
            results=results,
            notes=notes,
            summary=self.set.summary(results["model"]),
        )

    def _answers(
        self, model: OpenedModel, scoring: str, notes: list[str], reporter: Reporter
    ) -> Answers:
        """What a model makes of each choice of each question, scored in one way."""
        scorer, tokenizer = self.scorer(model, scoring=scoring), model.folder.tokenizer
        questions, answers, cut = self.set.questions, list[list[ScoredChoice]](), 0
        for begin in range(0, len(questions), QUERIES_AHEAD):
            block = questions[begin : begin + QUERIES_AHEAD]
            queries = [
                encode_query(tokenizer, one.context, one.choices, source=one.source)
                for one in block
            ]
            scored = scorer.score(iter(queries))
            for question, query, found in zip(block, queries, scored, strict=True):
                cut += found.cut > 0
                choices = []
                for text, ids, score in zip(
                    question.choices, query.continuations, found.scores, strict=True
                ):
                    _, begins = tokenizer.encode_offsets(question.context + text)
                    own = begins[len(begins) - len(ids) :] - len(question.context)
                    choices.append(ScoredChoice(ids, own, score.log_probs))
                answers.append(choices)
                reporter.progress(f"questions to {model.name}", len(answers), len(questions))
        if cut:
            notes.append(
                f"{cut:,} of {len(questions):,} texts were longer than {model.name} reads at once, "
                "and lost their beginning"
            )
        return answers

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The tables of the set, or of swapped terms."""
        if report.task == COUNTERFACTUAL_REPORT:
            from llmctl.tasks.suites.counterfactual import CounterfactualEvaluator

            yield from CounterfactualEvaluator.parts(report)
            return
        yield from BIAS_SETS[report.facts["set"]].parts(report)


def record_of(place: Path) -> InputRecord:
    """A file or a folder of files as an input."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    digests = [[file.name, sha256_file(file)] for file in files if file.is_file()]
    return InputRecord(role="data", name=str(place.resolve()), digest=sha256_json(digests))
