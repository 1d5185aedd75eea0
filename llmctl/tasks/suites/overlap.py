"""Measure how much of a test a model has read in training: ``llmctl eval --suite overlap``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmctl.errors import InputError, UsageError
from llmctl.evaluation.contamination import NEAR_DUPLICATE, NGRAM_SIZES, SHINGLE
from llmctl.evaluation.report import MODEL, Report
from llmctl.formats.description import MODEL_KINDS
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.contamination import TrainingTexts, find_overlap, rows_of
from llmctl.tasks.evaluation import FOR_LANGUAGE_MODELS, FOR_SOURCES, Evaluator
from llmctl.tasks.suites.bias import record_of

ROWS_SHOWN = 20
"""Rows that a table names; the report has all."""
EXPLAINED = (
    "a row counts if so many of its words in a row stand in the training text (Brown et al. 2020); "
    "words: how much of all the test's words such stretches cover; near-duplicates: training "
    f"documents whose pieces of {SHINGLE} words are the same by {NEAR_DUPLICATE:.0%} (Jaccard, "
    "found by MinHash, then computed)"
)
HOW = "figures of a test that was read in training say little of texts that were not"


class OverlapEvaluator(Evaluator):
    """A test beside the training text of a run."""

    kinds = tuple(MODEL_KINDS)
    reports = ("suite-overlap",)

    def choose(self) -> None:
        """Find the training text, and read the test."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task", "scoring", "dtype")
        if self.others:
            raise UsageError(
                "--suite overlap is of one model's training text; leave out --compare "
                f"{self.others[0].name}, and measure it by itself"
            )
        if self.files.data is None:
            raise UsageError("--suite overlap: give the test, --data FILE")
        if not self.path.exists():
            raise InputError(f"{self.path} is not there; give the test, a file or a folder of them")
        self.training = TrainingTexts(self.workspace, self.model, "--suite overlap")
        self.data = record_of(self.path)

    def run(self, reporter: Reporter) -> Report:
        """Run the training text past the test."""
        config = self.config
        read = rows_of(
            self.path,
            columns=config.text_column,
            unit=config.document,
            reading=self.read_options(reporter),
        )
        rows = list(read)[: config.limit]
        if not rows:
            raise InputError(f"{self.path} has no rows with text")
        found = find_overlap(self.training, rows, reporter, seed=config.seed)
        notes = [f"not looked at: {', '.join(found['missing'])}"] if found["missing"] else []
        if config.limit is not None:
            notes.append(f"only the first {config.limit:,} rows were looked for (--limit)")
        largest = found["ngrams"][str(NGRAM_SIZES[0])]["share"]
        return Report(
            task=self.reports[0],
            data=str(self.path),
            facts={name: found[name] for name in ("rows", "documents", "trained_on")},
            results={MODEL: found},
            notes=notes,
            summary={
                f"rows_with_{NGRAM_SIZES[0]}_words": largest,
                "near_duplicates": found["near_duplicates"]["share"],
            },
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """Shares, and the rows that were found."""
        found, facts = report.results[MODEL], report.facts
        lines = []
        for size in NGRAM_SIZES:
            entry = found["ngrams"][str(size)]
            covered = f"{entry['words']:.1%}"
            lines.append([f"{size} words in a row", _count(entry), _shown(entry), covered])
        for label, key in (("near-duplicates", "near_duplicates"), ("either", "either")):
            lines.append([label, _count(found[key]), _shown(found[key]), ""])
        yield ReportTable(
            f"{report.model}: {facts['rows']:,} rows beside {facts['documents']:,} documents of "
            + ", ".join(facts["trained_on"]),
            ["rows", "share (95 %)", "words"],
            lines,
        )
        if too_short := found["ngrams"][str(NGRAM_SIZES[-1])]["too_short"]:
            least = NGRAM_SIZES[-1]
            yield f"{too_short:,} rows have fewer than {least} words, and no n-gram to look for"
        if rows := found["found"]:
            yield ReportTable(
                f"rows that were found, {min(ROWS_SHOWN, len(rows)):,} of {len(rows):,}",
                [*(f"in {size} words" for size in NGRAM_SIZES), "like", "Jaccard"],
                [_row(row) for row in rows[:ROWS_SHOWN]],
            )
        yield EXPLAINED
        yield HOW


def _row(row: Any) -> list[str]:
    near = row["document"] is not None
    return [
        row["row"].rpartition("/")[2],
        *(f"{row['covered'][str(size)]:.0%}" for size in NGRAM_SIZES),
        row["document"].rpartition("/")[2] if near else "–",
        f"{row['similarity']:.2f} (est. {row['estimate']:.2f})" if near else "–",
    ]


def _count(entry: Any) -> str:
    return f"{entry['count']:,} of {entry['of']:,}"


def _shown(entry: Any) -> str:
    if entry["share"] is None:
        return "–"
    low, high = entry["interval"]
    return f"{entry['share']:.1%} ({100 * low:.1f}–{100 * high:.1f})"
