"""Evaluate a detector of replaced tokens: on the validation part of its shards, whose tokens its
own generator replaces, beside calling every token the text's own.

N judged tokens, R rows of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.evaluation.bootstrap import percentile_interval, resample_counts
from llmctl.evaluation.detection import Ranking
from llmctl.evaluation.report import MODEL, Figure, Report, share
from llmctl.models.heads.replaced_tokens import DetectorWithGenerator
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.electra.batches import ReplacedBatches
from llmctl.tasks.electra.loss import replaced_rows
from llmctl.tasks.electra.task import open_with_generator
from llmctl.tasks.evaluation import (
    FOR_LANGUAGE_MODELS,
    FOR_SOURCES,
    FOR_WRITERS,
    Evaluator,
    no_validation,
    trained_config,
)
from llmctl.tasks.masked_lm.evaluate import choose_own_shards
from llmctl.tasks.pretraining import VALIDATION_SEED, open_pretraining
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device

ROWS_AT_MOST = 1 << 20
"""Rows of a batch, by which rows are told apart."""
BASELINE = "every token original"
EXPLAINED = (
    "accuracy: tokens of which it is told rightly whether the generator replaced them; AUC: how "
    "often a replaced token looks more so than one that isn't, 50% by chance; precision and "
    "recall: of the tokens called replaced. A token that the generator put back as it was counts "
    "as original; intervals by resampling rows of tokens"
)


class DetectionEvaluator(Evaluator):
    """The validation part of a detector's shards, with tokens that its generator replaced."""

    kinds = ("electra",)
    reports = ("detection",)

    def choose(self) -> None:
        """A detector is measured on its own shards alone."""
        self.refuse(FOR_SOURCES, "target")
        self.refuse(FOR_LANGUAGE_MODELS, "template", "examples", "task")
        self.refuse(FOR_WRITERS, "dtype")
        self.shards = choose_own_shards(self)

    def run(self, reporter: Reporter) -> Report:
        """Measure; the number by which a replacement is drawn depends on its place alone, so that
        the texts stay the same for one generator."""
        run, shards = self.model.run, self.shards
        assert run is not None
        assert shards is not None
        device = choose_device(self.config.device)
        model = open_with_generator(self.model.folder).to(device)
        pretraining = open_pretraining(shards, trained_config(run.manifest))
        batches = pretraining.batches("validation", seed=VALIDATION_SEED)
        if not batches.per_epoch:
            raise no_validation(shards, "")
        assert isinstance(batches, ReplacedBatches)
        judged = _judge(model, batches, device, reporter)
        figures, baseline = _figures(judged, self.config.resamples, self.config.seed)
        return Report(
            task="detection",
            data=shards.manifest.reference,
            facts={
                "judged_tokens": len(judged.logits_N),
                "replaced_tokens": int(judged.replaced_N.sum()),
                "hidden_tokens": judged.hidden,
                "generator_accuracy": judged.put_back / judged.hidden if judged.hidden else None,
            },
            results={MODEL: figures, BASELINE: baseline},
            summary={key: figures[key] for key in ("accuracy", "auc")}
            | {"baseline_accuracy": baseline["accuracy"]},
        )

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """A row for the detector and one for calling every token original."""
        facts = report.facts
        yield report.table(
            f"{report.model} on {facts['judged_tokens']:,} tokens of the validation part of "
            f"{report.data}, {facts['replaced_tokens']:,} of them replaced",
            [
                share("accuracy", "accuracy", "accuracy_interval"),
                Figure("AUC", "auc", ".1%", "auc_interval", scale=100, optional=True),
                Figure("precision", "precision", ".1%", optional=True),
                Figure("recall", "recall", ".1%", optional=True),
            ],
        )
        yield EXPLAINED


class JudgedTokens:
    """What a detector says of tokens, and what is so."""

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        """parts: those of batches, in their order."""
        joined: dict[str, NDArray[Any]] = {
            key: np.concatenate([np.asarray(part[key]) for part in parts])
            for key in ("logits", "replaced", "row")
        }
        self.logits_N = joined["logits"].astype(np.float64)
        self.replaced_N = joined["replaced"].astype(bool)
        self.row_N = joined["row"].astype(np.int64)
        self.hidden = sum(part["hidden"] for part in parts)
        self.put_back = sum(part["put_back"] for part in parts)


@torch.inference_mode()
def _judge(
    model: DetectorWithGenerator, batches: ReplacedBatches, device: torch.device, reporter: Reporter
) -> JudgedTokens:
    """All batches, which several processes divide."""
    model.eval()
    world, total = get_world(), batches.per_epoch
    own: dict[int, dict[str, Any]] = {}
    for number in range(world.rank, total, world.size):
        batch = batches(number).to(device)
        rows = replaced_rows(model, batch)
        hidden_BTD = model.body(
            rows.ids_BT, batch.segment_ids_BT, batch.packed, batch.position_ids_BT
        )
        judged_BT = batch.judged_BT
        row_BT = torch.arange(len(judged_BT), device=device)[:, None].expand_as(judged_BT)
        own[number] = {
            "logits": model.logits(hidden_BTD)[judged_BT].tolist(),
            "replaced": rows.is_replaced_BT[judged_BT].tolist(),
            "row": (row_BT[judged_BT] + number * ROWS_AT_MOST).tolist(),
            "hidden": len(batch.labels_M),
            "put_back": len(batch.labels_M) - int(rows.is_replaced_BT.sum()),
        }
        reporter.progress("replaced tokens", number + 1, total)
    gathered = world.all_gather_json({str(number): part for number, part in own.items()})
    found = {int(number): part for process in gathered for number, part in process.items()}
    return JudgedTokens([found[number] for number in sorted(found)])


def _figures(
    judged: JudgedTokens, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The detector's figures, and those of calling every token original."""
    said_N, replaced_N = judged.logits_N > 0, judged.replaced_N
    ranking = Ranking(judged.logits_N, replaced_N)
    _, row_N = np.unique(judged.row_N, return_inverse=True)
    tokens_R = np.bincount(row_N)
    right_R = np.bincount(row_N, said_N == replaced_N)
    original_R = np.bincount(row_N, ~replaced_N)
    drawn_SR = resample_counts(
        np.ones(len(tokens_R), dtype=np.int64), resamples, np.random.default_rng(seed)
    )
    counted_S = drawn_SR @ tokens_R
    areas = [ranking.area(drawn_R[row_N].astype(np.float64)) for drawn_R in drawn_SR]
    known = [area for area in areas if area is not None]
    hits = int((said_N & replaced_N).sum())
    accuracy, original = float((said_N == replaced_N).mean()), float((~replaced_N).mean())
    return (
        {
            "accuracy": accuracy,
            "accuracy_interval": percentile_interval(drawn_SR @ right_R / counted_S),
            "auc": ranking.area(),
            "auc_interval": percentile_interval(known) if known else None,
            "precision": hits / int(said_N.sum()) if said_N.any() else None,
            "recall": hits / int(replaced_N.sum()) if replaced_N.any() else None,
        },
        {
            "accuracy": original,
            "accuracy_interval": percentile_interval(drawn_SR @ original_R / counted_S),
            "auc": 0.5,
            "auc_interval": None,
            "precision": None,
            "recall": 0.0,
        },
    )
