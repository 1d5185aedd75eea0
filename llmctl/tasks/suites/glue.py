"""Measure models on GLUE: ``llmctl eval --suite glue``. Each task is learned from its training part
by a named protocol and measured on its dev part; what is printed is the median over seeds.

Trainings are ordinary runs, so that a stopped measurement goes on with those that are left.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from llmctl.data.tables.encoded import encode_examples, pad_token
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import MODEL, Report
from llmctl.evaluation.suites.glue import (
    PUBLISHED_GLUE,
    Floats,
    GlueData,
    GlueExample,
    find_tasks,
    interval_of,
    read_part,
    score,
)
from llmctl.formats.description import NEXT_TOKEN_KINDS
from llmctl.reporting.report import ReportPart, ReportTable
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import finetuning
from llmctl.tasks.classify.predict import class_probabilities
from llmctl.tasks.evaluation import Evaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.regress.predict import numbers_of
from llmctl.training.precision import choose_device
from llmctl.workspace.files import sha256_file, sha256_json
from llmctl.workspace.manifests import InputRecord
from llmctl.workspace.names import slug


@dataclass(frozen=True)
class Protocol:
    """How tasks are learned."""

    rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    epochs: int
    said: str

    @property
    def points(self) -> list[tuple[float, int]]:
        """Rates and batch sizes that are tried."""
        return [(rate, size) for rate in self.rates for size in self.batch_sizes]


PROTOCOLS = {
    "turc": Protocol(
        (3e-4, 1e-4, 5e-5, 3e-5), (8, 16, 32, 64, 128), 4,
        "Turc et al. 2019: 4 epochs, of 4 rates and 5 batch sizes the best on dev with the first "
        "seed, then with the others; chosen on what is measured, it is a little too high",
    ),
    "babylm": Protocol(
        (3e-5,), (32,), 10,
        "BabyLM's of 2025: rate 3e-5, batch 32, 10 epochs; the last weights, where theirs are the "
        "best on dev",
    ),
}  # fmt: skip

Finetune = Callable[[str, Path, Any, str], OpenedModel]
"""Finetunes a model (its name, the data, the configuration, the run's name)."""


class GlueEvaluator(Evaluator):
    """GLUE's tasks, each learned by a model and measured on its dev part."""

    kinds = (*NEXT_TOKEN_KINDS, "masked_lm", "electra", "embed")
    reports = ("suite-glue",)

    def choose(self) -> None:
        """Find the tasks' files."""
        if self.files.data is None:
            raise UsageError("--suite glue: give the folder of its tasks, --suite glue DIR")
        if self.others:
            raise UsageError("--compare: --suite glue trains one model at a time; leave it out")
        for option in ("scoring", "task"):
            self.refuse("doesn't go with --suite glue, which trains {}; leave it out", option)
        self.tasks = find_tasks(self.path)
        digests = [
            [data.task.name, sha256_file(data.train), sha256_file(data.dev)] for data in self.tasks
        ]
        self.data = InputRecord(
            role="data", name=str(self.path.resolve()), digest=sha256_json(digests)
        )

    def run(self, reporter: Reporter) -> Report:
        """Train and measure each task."""
        protocol = PROTOCOLS[self.config.protocol]
        notes = [f"protocol: {protocol.said}"]
        results: dict[str, Any] = {}
        for data in self.tasks:
            train, broken = read_part(data.task, data.train)
            dev, lacking = read_part(data.task, data.dev)
            if broken + lacking:
                notes.append(
                    f"{data.task.name}: left out {broken + lacking:,} rows without label or fields"
                )
            limit = self.config.limit
            results[data.task.name] = self._measure(
                data, train[:limit], dev[:limit], protocol, reporter
            )
        if self.config.limit is not None:
            notes.append(f"only the first {self.config.limit:,} examples were used (--limit)")
        average = float(np.mean([entry["median"] for entry in results.values()]))
        return Report(
            task="suite-glue",
            data=str(self.path),
            facts={
                "protocol": self.config.protocol,
                "seeds": self.config.seeds,
                "published": PUBLISHED_GLUE,
            },
            results={MODEL: {"average": average, "tasks": results}},
            notes=notes,
            summary={"average": average},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """A row for each task, with what was published."""
        row, published = report.results[MODEL], report.facts["published"]
        lines = []
        for name, entry in row["tasks"].items():
            low, high = entry["interval"]
            lines.append(
                [
                    f"{name} ({entry['metric']})",
                    f"{entry['train_examples']:,} / {entry['dev_examples']:,}",
                    f"{100 * entry['median']:.1f} ({100 * low:.1f}–{100 * high:.1f})",
                    f"{100 * min(entry['scores']):.1f}–{100 * max(entry['scores']):.1f}",
                    *(f"{theirs[name]:.1f}" for theirs in published.values()),
                ]
            )
        yield ReportTable(
            f"{report.model}: GLUE, dev parts",
            ["train / dev", "median (95 %)", "seeds", *(name[5:] for name in published)],
            lines,
        )
        yield (
            f"average of {len(lines)} tasks: {100 * row['average']:.1f}; median over "
            f"{report.facts['seeds']} seeds, its interval over examples. Published: Google's small "
            "BERTs on the hidden test parts (Turc et al. 2019)"
        )

    def _measure(
        self,
        data: GlueData,
        train: Sequence[GlueExample],
        dev: Sequence[GlueExample],
        protocol: Protocol,
        reporter: Reporter,
    ) -> dict[str, Any]:
        """A task's scores: of the best point of the protocol, by all seeds."""
        task, seeds = data.task, range(self.config.seed, self.config.seed + self.config.seeds)
        found: dict[tuple[float, int, int], tuple[float, Floats, Floats]] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{slug(task.name.lower(), 'task')}.jsonl"
            rows = (json.dumps(example.record(), ensure_ascii=False) for example in train)
            path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")

            def measured(rate: float, size: int, seed: int) -> float:
                model = self._trained(data, path, (rate, size, seed), protocol)
                given_N, true_N = self._answers(data, model, dev)
                value = score(task.metric, given_N, true_N)
                found[rate, size, seed] = value, given_N, true_N
                reporter.note(
                    f"{task.name}: {task.metric} {100 * value:.1f} with rate {rate:g}, batch "
                    f"{size}, seed {seed}"
                )
                return value

            best = max(protocol.points, key=lambda point: measured(point[0], point[1], seeds[0]))
            for seed in seeds[1:]:
                measured(best[0], best[1], seed)
        scores = [found[best[0], best[1], seed][0] for seed in seeds]
        middle = scores.index(median_low(scores))
        _, given_N, true_N = found[best[0], best[1], seeds[middle]]
        how = {"resamples": self.config.resamples, "seed": self.config.seed}
        return {
            "metric": task.metric,
            "median": scores[middle],
            "interval": list(interval_of(task.metric, given_N, true_N, **how)),
            "scores": scores,
            "learning_rate": best[0],
            "batch_size": best[1],
            "train_examples": len(train),
            "dev_examples": len(dev),
        }

    def _trained(
        self, data: GlueData, path: Path, point: tuple[float, int, int], protocol: Protocol
    ) -> OpenedModel:
        """The model that has learned a task, found again where it was trained before."""
        assert self.finetune is not None, "the command says how to finetune"
        rate, size, seed = point
        training = {"learning_rate": rate, "batch_size": size, "epochs": protocol.epochs}
        pair = {"text_pair_column": "text_pair"} if data.task.pair else {}
        config = finetuning.resolve(
            "regress" if data.task.is_regression else "classify",
            {
                "training": {**training, "device": self.config.device},
                "data": {"validation": 0.0, "text_column": "text", "label_column": "label", **pair},
                "seed": seed,
            },
        )
        name = (
            f"glue-{slug(Path(self.model.name).name, 'model')}-{slug(data.task.name.lower(), 'x')}"
        )
        limit = "" if self.config.limit is None else f"-first-{self.config.limit}"
        run = f"{name}{limit}-{self.config.protocol}-{rate:g}-{size}-seed-{seed}"
        return self.finetune(self.model.name, path, config, run)

    def _answers(
        self, data: GlueData, model: OpenedModel, dev: Sequence[GlueExample]
    ) -> tuple[Floats, Floats]:
        """What a model answers on the dev part and what is right: classes by their numbers.

        Raises InputError for a label that the training part doesn't have.
        """
        folder = model.folder
        network = folder.network().to(choose_device(self.config.device))
        examples = [
            Example(entry.text, entry.text_pair, entry.label, f"{data.dev}: example {number}")
            for number, entry in enumerate(dev, 1)
        ]
        encoded = encode_examples(
            folder.tokenizer, examples, folder.max_length, pad=folder.end_padding
        )
        pad = pad_token(folder.tokenizer)
        if data.task.is_regression:
            true_N = np.array([float(entry.label) for entry in dev])
            return numbers_of(network, encoded, pad), true_N
        labels = folder.labels or []
        if unknown := sorted({entry.label for entry in dev} - set(labels)):
            raise InputError(
                f"{data.dev} has labels that {data.train} lacks ({', '.join(unknown[:5])}); mend it"
            )
        given_N = class_probabilities(network, encoded, pad).argmax(-1).astype(np.float64)
        return given_N, np.array([float(labels.index(entry.label)) for entry in dev])
