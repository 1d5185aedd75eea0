"""Measure models on BLiMP: ``llmctl eval --suite blimp``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmctl.errors import UsageError
from llmctl.evaluation.report import MODEL, Report, share
from llmctl.evaluation.suites.blimp import (
    AVERAGE,
    PUBLISHED,
    PUBLISHED_BY,
    Floats,
    PairSet,
    figures,
    gap_of,
    points_of,
    read_sets,
    remarks,
)
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.benchmarks import folder_record
from llmctl.tasks.causal_lm.scoring import ask
from llmctl.tasks.classify.evaluate import ACCURACY_GAP
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.suites.scoring import TextEvaluator

EXPLAINED = (
    "how often the grammatical sentence of two is the likelier, 50% by chance, ties counting half; "
    "published: Warstadt et al. 2020, of GPT-2 the large one; most of twenty people together: 96.4%"
)
TEN_MILLION_WORDS = (
    "BabyLM's GPT-2 of 2026 has 65.1% after 10 million words, on BLiMP without sentences whose "
    "words its corpus lacks: near by, not the same sets"
)
IN_TABLE = ("5-gram", "LSTM", "GPT-2", "one person")
"""Published rows that the table has room for; the report has all."""
SHORT_NAMES = {
    "determiner_noun_agreement": "det.-noun agreement",
    "subject_verb_agreement": "subj.-verb agreement",
    "filler_gap_dependency": "filler-gap",
    "syntax_semantics": "syntax & semantics",
}


class BlimpEvaluator(TextEvaluator):
    """BLiMP's pairs under models that score texts."""

    reports = ("suite-blimp",)

    def choose(self) -> None:
        """Find the sets' folder."""
        super().choose()
        if self.files.data is None:
            raise UsageError("--suite blimp: give the folder of its files, --suite blimp DIR")
        self.sets = read_sets(self.path, self.config.read_config().read_options())
        self.data = folder_record(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Score both sentences of each pair under each model."""
        notes, limit = remarks(self.sets), self.config.limit
        sets = [replace(entry, pairs=entry.pairs[:limit]) for entry in self.sets]
        if limit is not None:
            notes.append(f"only the first {limit:,} pairs of each set were scored (--limit)")
        points = {row: self._points(model, sets, reporter) for row, model in self.models.items()}
        results: dict[str, Any] = {
            row: {"scoring": self.scoring_of(self.models[row]), **figures(of_row, sets)}
            for row, of_row in points.items()
        }
        return Report(
            task="suite-blimp",
            data=str(self.path),
            facts={
                "sets": len(sets),
                "pairs": sum(len(entry.pairs) for entry in sets),
                "chance": 0.5,
                "published": {
                    name: {row: PUBLISHED[row][place] / 100 for row in PUBLISHED}
                    for place, name in enumerate(PUBLISHED_BY)
                },
            },
            results=results,
            differences={
                row: gap_of(points[MODEL], of_row) for row, of_row in points.items() if row != MODEL
            },
            notes=notes,
            summary={"accuracy": results[MODEL]["accuracy"]},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """The phenomena, the fields and the average, by models; what was published beside."""
        figure = share("", "accuracy", "interval")
        rows, published = report.results, report.facts["published"]

        def line(name: str, entries: Sequence[dict[str, Any]], *, known: bool) -> list[str]:
            theirs = [published[by].get(name) if known else None for by in IN_TABLE]
            cells = ("–" if value is None else f"{value:.1%}" for value in theirs)
            return [
                SHORT_NAMES.get(name, name.replace("_", " ")),
                *map(figure.cell, entries),
                *cells,
            ]

        size = f"{report.facts['pairs']:,} pairs in {report.facts['sets']} sets"
        yield ReportTable(
            f"{report.model}: BLiMP, {size}",
            [*(report.shown(row) for row in rows), *IN_TABLE],
            [
                *(
                    line(
                        name, [row[part][name] for row in rows.values()], known=part == "phenomena"
                    )
                    for part in ("phenomena", "fields")
                    for name in rows[MODEL][part]
                ),
                line(AVERAGE, list(rows.values()), known=True),
            ],
        )
        for name, row in rows.items():
            yield (f"{report.shown(name)}: {SCORED_BY[row['scoring']]}; {row['ties']:,} ties")
        yield EXPLAINED
        yield TEN_MILLION_WORDS
        yield from report.gaps(ACCURACY_GAP)

    def _points(
        self, model: OpenedModel, sets: Sequence[PairSet], reporter: Reporter
    ) -> dict[str, Floats]:
        """The points of each pair, by sets."""
        scorer, tokenizer = self.scorer(model), model.folder.tokenizer
        total, done = sum(len(entry.pairs) for entry in sets), 0
        points = {}
        for entry in sets:
            scores = np.array(
                [outcome.log_probs_C for outcome, _ in ask(scorer, tokenizer, entry.pairs)]
            )
            points[entry.uid] = points_of(scores[:, 0], scores[:, 1])
            done += len(entry.pairs)
            reporter.progress(f"pairs under {model.name}", done, total)
        return points


SCORED_BY = {
    "causal": "likelihood from left to right",
    "masked": "pseudo-likelihood, each token hidden in turn",
    "within-word": "pseudo-likelihood, each token hidden with the rest of its word",
}
