"""Measure what models give back of their training text: ``llmctl eval --suite memory``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llmctl.data.shards.files import ShardReader
from llmctl.data.text.decoding import text_lines
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import MODEL, Figure, Report, share
from llmctl.evaluation.suites.memory import (
    ALTERNATIVES,
    BY_CHANCE,
    PREFIX_TOKENS,
    alternatives,
    exposure,
    figures,
    stretches,
)
from llmctl.inference.scoring import Query
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.scoring import LanguageEvaluator
from llmctl.tasks.evaluation import shards_of
from llmctl.tasks.opened import OpenedModel

DOCUMENTS_TRIED = 200
"""Documents of each part that are tried where ``--limit`` says nothing."""
PARTS_READ = {"train": "train", "held out": "validation"}
"""What is read of the shards, and how it is called in the report."""


class MemoryEvaluator(LanguageEvaluator):
    """Extraction of training text by its beginnings, and the exposure of canaries."""

    reports = ("suite-memory",)

    def choose(self) -> None:
        """Find the shards that the model was trained on, and the canaries.

        Raises UsageError for options that say nothing here, InputError where the shards are gone or
        a model doesn't read their tokens.
        """
        super().choose()
        self.refuse_prompts()
        if self.config.scoring not in (None, "causal"):
            raise UsageError(
                f"--scoring {self.config.scoring} is for whole texts, and --suite memory goes from "
                "left to right; leave it out"
            )
        run = self.model.run
        if run is None:
            raise InputError(
                f"{self.model.name} is a folder, which does not say what it was trained on; "
                "--suite memory is for runs"
            )
        self.shards = shards_of(self.workspace, run.manifest)
        self.shards.verify("train")
        tokenizer = self.model.folder.tokenizer
        for other in self.others:
            if other.folder.tokenizer.digest() != tokenizer.digest():
                raise UsageError(
                    f"--compare {other.name} has another tokenizer than {self.model.name}, and the "
                    "same tokens are asked of both; compare models of the same shards"
                )
        self.canaries = [] if self.files.data is None else self._read_canaries()

    def _read_canaries(self) -> list[str]:
        """The lines of the file. Raises InputError for one without a digit."""
        if not self.path.is_file():
            raise InputError(f"{self.path}: canaries are a text file, one a line; no such file")
        self.data = data_record(self.path)
        reading = self.config.read_config().read_options()
        lines = [line.strip() for line, _ in text_lines(self.path, reading)]
        for number, line in enumerate(lines, 1):
            if line and not any(letter in "0123456789" for letter in line):
                raise InputError(
                    f"{self.path}, line {number} has no digit: a canary's secret is its digits, "
                    "and it is ranked among the same text with others"
                )
        found = [line for line in lines if line]
        if not found:
            raise InputError(f"{self.path} has no canary; write one a line")
        return found

    def run(self, reporter: Reporter) -> Report:
        """Ask each model to go on with beginnings of documents, and rank the canaries."""
        assert self.shards is not None
        notes, limit = [], self.config.limit or DOCUMENTS_TRIED
        length = min(self._length(model) for model in self.models.values())
        readers = {
            name: ShardReader(self.shards.folder, split) for name, split in PARTS_READ.items()
        }
        asked = {
            name: stretches(reader, limit, length, self.config.seed)
            for name, reader in readers.items()
        }
        for name, found in asked.items():
            if not found:
                notes.append(f"no document of the part {name} has {2 * length} tokens")
        if not asked["train"]:
            raise InputError(
                f"{self.shards.manifest.reference} has no training document of {2 * length} tokens "
                "to take a beginning and what follows it from"
            )
        results: dict[str, Any] = {}
        for row, model in self.models.items():
            scorer = self.scorer(model)
            parts = {}
            for name, found in asked.items():
                queries = [Query(before, [after]) for before, after in found]
                answers = [one.scores[0] for one in scorer.score(queries, greedy=True)]
                parts[name] = figures(
                    [bool(one.greedy) for one in answers],
                    [-float(np.mean(one.log_probs)) for one in answers],
                )
                reporter.progress(f"{name} under {model.name}", len(found), len(found))
            results[row] = {**parts, "canaries": self._exposures(scorer, model)}
        return Report(
            task="suite-memory",
            data=self.shards.manifest.reference,
            facts={"length": length, "canaries": self.canaries, "exposure_by_chance": BY_CHANCE},
            results=results,
            notes=notes,
            summary={"extracted": results[MODEL]["train"]["extracted"]},
        )

    @staticmethod
    def _length(model: OpenedModel) -> int:
        """Tokens of a prefix that a model can read with as many behind it."""
        if model.kind == "ngram":
            return PREFIX_TOKENS
        return max(1, min(PREFIX_TOKENS, model.folder.max_length // 2))

    def _exposures(self, scorer: Any, model: OpenedModel) -> list[dict[str, float]]:
        """The exposure of each canary, from a document's start."""
        around = model.folder.tokenizer.boundaries
        if self.canaries and around is None:
            raise InputError(
                f"the tokenizer of {model.name} has no token for a document's start, behind which "
                "canaries are read; leave out --data"
            )
        found = []
        for canary in self.canaries:
            assert around is not None
            texts = [canary, *alternatives(canary, self.config.seed, ALTERNATIVES)]
            ids = [np.array(model.folder.tokenizer.encode(text), dtype=np.int64) for text in texts]
            query = Query(np.array(around[:1]), ids, canary)
            (answer,) = scorer.score([query])
            log_probs = [float(one.log_probs.sum()) for one in answer.scores]
            bits, rank = exposure(log_probs)
            found.append({"exposure": bits, "rank": rank, "candidates": len(texts)})
        return found

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """Extraction by models, and the canaries."""
        columns: Sequence[Figure] = [
            share("extracted of training text", "train.extracted", "train.interval"),
            share("of held-out text", "held out.extracted", "held out.interval"),
            Figure("loss", "train.loss"),
            Figure("held out", "held out.loss"),
        ]
        length = report.facts["length"]
        count = report.results[MODEL]["train"]["stretches"]
        yield report.table(
            f"{report.model}: memory, {count:,} stretches of {length} tokens", columns
        )
        if canaries := report.facts["canaries"]:
            rows = [
                [
                    canary,
                    *(f"{row['canaries'][n]['exposure']:.2f}" for row in report.results.values()),
                    f"{report.results[MODEL]['canaries'][n]['candidates']:,}",
                ]
                for n, canary in enumerate(canaries)
            ]
            headings = [*(report.shown(row) for row in report.results), "candidates"]
            yield ReportTable("exposure of canaries, in bits", headings, rows)
            yield (
                f"by chance {report.facts['exposure_by_chance']:.2f} bits on average; at most the "
                "binary logarithm of the candidates"
            )
        yield (
            f"extracted: greedy decoding goes on word for word behind {length} tokens (Carlini et "
            "al. 2023); held-out text tells what can be guessed; loss: nats a token"
        )
