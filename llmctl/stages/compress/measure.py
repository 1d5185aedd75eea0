"""What a compression costs and gains: rows of figures, beside the start and a simpler method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.compression.config import CompressConfig
from llmctl.compression.speed import bytes_in_memory, measure_speed
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import MODEL, Report, at
from llmctl.formats.description import NEXT_TOKEN_KINDS
from llmctl.inference.weights import WeightType
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.evaluation import EvaluateConfig, Evaluator, Files
from llmctl.tasks.masked_lm.hidden import HiddenTokensEvaluator
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import folder_size


@dataclass(frozen=True)
class Quality:
    """What a kind of report says of a model's quality."""

    name: str
    key: str
    interval: str
    falls: bool = False
    """Whether less of it is better."""


QUALITIES: Mapping[str, Quality] = {
    "perplexity": Quality("bits per byte", "bits_per_byte", "interval", falls=True),
    "classify": Quality("accuracy", "accuracy", "intervals.accuracy"),
    "multi_label": Quality("micro F1", "micro_f1", "intervals.micro_f1"),
    "ordinal": Quality("accuracy", "accuracy", "intervals.accuracy"),
    "regress": Quality("Spearman", "spearman", "intervals.spearman"),
    "hidden_tokens": Quality("nats per hidden token", "mlm_loss", "interval", falls=True),
    "tag": Quality("F1", "f1", "intervals.f1"),
    "sts": Quality("Spearman", "spearman", "intervals.spearman"),
    "retrieval": Quality("nDCG", "ndcg", "intervals.ndcg"),
}
"""By kind of report."""


class Measure:
    """A way of measuring a model's quality, chosen and checked before anything is compressed."""

    def __init__(
        self,
        workspace: Workspace,
        start: OpenedModel,
        held_out: Path | None,
        config: CompressConfig,
    ) -> None:
        """Raises UsageError where the model needs a file of held-out examples, InputError where
        nothing measures it beside another."""
        self.workspace, self.start = workspace, start
        self.files = Files(held_out)
        writes, masked = start.kind in NEXT_TOKEN_KINDS, start.kind == "masked_lm"
        self.config = EvaluateConfig(
            baselines=False,
            text_column=config.text_column,
            label_column=config.label_column,
            seed=config.seed,
            **({"task": "perplexity"} if writes else {}),
            **({"max_tokens": config.max_tokens} if writes or masked else {}),
        )
        ways = iter(
            [HiddenTokensEvaluator]
            if masked
            else [way for way in TASKS[start.kind].evaluators()
                  if way.suits(self.files, self.config)]
        )  # fmt: skip
        way = next(ways, None)
        if way is None or not {*way.reports} & {*QUALITIES}:
            raise InputError(
                f"{start.name} is {start.described}, and nothing measures one beside another; "
                "compress a model of labels, numbers, tags, vectors or text"
            )
        if held_out is None and (start.run is None or not (writes or masked)):
            raise UsageError(
                f"{start.name} is measured on held-out examples: give a file of them, --eval FILE"
            )
        self.way: type[Evaluator] = way.for_model(start)
        self.inputs = self._evaluator({MODEL: start}).inputs()[1:]

    def _evaluator(self, models: Mapping[str, OpenedModel]) -> Evaluator:
        return self.way(self.workspace, models, self.files, self.config)

    def report(self, models: Mapping[str, OpenedModel], reporter: Reporter) -> Report:
        """Measure models on the same data, the compressed one under ``MODEL``."""
        return self._evaluator(models).run(reporter)


def without_training(model: OpenedModel, run: Artefact) -> OpenedModel:
    """A model as one of a run that it was made from, and not trained in: it is measured on its
    shards, and not once more as in training."""
    return replace(model, run=run)


IN_INT8 = ("classify", "setfit")
"""What readers do that compute in int8; others' matrices become fp32."""


def fastest_type(kind: str, bits: int | None) -> WeightType:
    """The form in which a compressed model is used."""
    if bits is None:
        return "fp32"
    if kind in NEXT_TOKEN_KINDS:
        return "int4" if bits == 4 else "int8"
    return "int8" if bits == 8 and kind in IN_INT8 else "fp32"


def rows_of(
    models: Mapping[str, tuple[OpenedModel, WeightType]],
    report: Report,
    start: str,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """A row of figures for each model, in the order given.

    models: by their rows in the report, with the form that they are used in. start: the row of what
    was compressed.
    """
    quality = QUALITIES[report.task]
    sign = 1 if quality.falls else -1
    before = report.results[start][quality.key]
    gap = (report.differences or {})[start]
    ends = None if gap["low"] is None else sorted((sign * gap["low"], sign * gap["high"]))
    rows = []
    for row, (model, dtype) in models.items():
        reporter.note(f"timing {model.name} ({dtype})")
        figures, speed = report.results[row], measure_speed(model.folder, dtype, reporter.note)
        rows.append(
            {
                "name": model.name,
                "dtype": dtype,
                "bytes_on_disk": folder_size(model.folder.path),
                "bytes_in_memory": bytes_in_memory(model.folder, dtype),
                "latency_1": speed.latency_1,
                "latency_32": speed.latency_32,
                "tokens_per_second": speed.tokens_per_second,
                "quality": figures[quality.key],
                "interval": at(figures, quality.interval),
                "lost": None if row == start else sign * (figures[quality.key] - before),
                "lost_interval": ends if row == MODEL else None,
            }
        )
    return rows


def loss_of(report: Report, start: str) -> float:
    """How much quality the compressed model has lost, above 0 where it is worse."""
    assert report.differences is not None
    difference = float(report.differences[start]["difference"])
    return difference if QUALITIES[report.task].falls else -difference
