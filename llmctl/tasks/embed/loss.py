"""Losses that put texts which belong together near each other, and others apart.

With cosines c between vectors, τ the temperature, example i's anchor, its positive i and all
candidates j of the batch:

    infonce   −log exp(cᵢᵢ/τ) / Σⱼ exp(cᵢⱼ/τ)      (van den Oord et al. 2018; Henderson et al. 2017)
    triplet   max(0, c(anchor, negative) − c(anchor, positive) + margin)      (Schroff et al. 2015)
    cosent    log(1 + Σ exp((cⱼ − cᵢ)/τ)) over pairs i of a higher score than j    (Su 2022, CoSENT)
    mse       (cᵢ − score)²                                             (Reimers and Gurevych 2019)

E examples, C candidates, N hard negatives, S texts, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.models.heads.embed import Embedder
from llmctl.tasks.embed.batches import EmbedBatch
from llmctl.training.batches import ComparedLoss, LossParts, SumAndCount


def infonce(
    anchors_ED: Tensor,
    candidates_CD: Tensor,
    false_EC: Tensor,
    *,
    temperature: float,
    symmetric: bool = False,
) -> Tensor:
    """The loss of each anchor (E,), in nats; candidate i is anchor i's positive.

    false_EC: candidates that are left out of an anchor's. symmetric: the mean with the loss that
    tells each positive's anchor among all anchors.
    """
    E = len(anchors_ED)
    logits_EC = cosines(anchors_ED, candidates_CD) / temperature
    logits_EC = logits_EC.masked_fill(false_EC, -math.inf)
    own_E = torch.arange(E, device=logits_EC.device)
    loss_E = F.cross_entropy(logits_EC, own_E, reduction="none")
    if not symmetric:
        return loss_E
    back_E = F.cross_entropy(logits_EC[:, :E].T, own_E, reduction="none")
    return (loss_E + back_E) / 2


def cosent(cosines_E: Tensor, scores_E: Tensor, *, temperature: float) -> Tensor:
    """The loss of a batch of scored pairs: one number."""
    scaled_E = cosines_E / temperature
    wrong_EE = scaled_E[None, :] - scaled_E[:, None]
    higher_EE = scores_E[:, None] > scores_E[None, :]
    wrong_EE = wrong_EE.masked_fill(~higher_EE, -math.inf)
    return torch.logsumexp(F.pad(wrong_EE.flatten(), (1, 0)), 0)


def cosines(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """The cosine of each of the one with each of the other, (N, M)."""
    return F.normalize(a_ND, dim=-1) @ F.normalize(b_MD, dim=-1).T


MOMENTS = ("cosine", "score", "cosine_squared", "score_squared", "cosine_score")
"""Names of the means that a correlation follows from."""


def moments(cosines_E: Tensor, scores_E: Tensor) -> dict[str, SumAndCount]:
    """Sums and counts of ``MOMENTS``, which are added up over batches."""
    x_E, y_E = cosines_E.double(), scores_E.double()
    products = (x_E, y_E, x_E * x_E, y_E * y_E, x_E * y_E)
    return {
        name: SumAndCount(product_E.sum(), len(x_E))
        for name, product_E in zip(MOMENTS, products, strict=True)
    }


def correlation(means: Mapping[str, float]) -> float:
    """Pearson's correlation of cosines and scores, from the means of ``MOMENTS``; 0 where either
    has one value only."""
    x, y, xx, yy, xy = (means[name] for name in MOMENTS)
    spread = max(xx - x * x, 0.0) * max(yy - y * y, 0.0)
    return (xy - x * y) / math.sqrt(spread) if spread > 0 else 0.0


@dataclass(frozen=True)
class EmbedLoss(ComparedLoss):
    """What an embedder is trained by."""

    kind: str
    temperature: float
    margin: float
    symmetric: bool
    widths: Sequence[int | None]
    """What is kept of each vector; None: all of it. The loss is the mean over them."""

    def encode(self, model: Embedder, batch: Any) -> Tensor:
        vectors: Tensor = model(*batch.inputs)
        return vectors

    def compare(self, encoded: Tensor, batch: EmbedBatch) -> LossParts:
        vectors_SD = encoded[batch.place_S].float()
        kinds: dict[str, Callable[[Tensor, Tensor, EmbedBatch], Tensor]] = {
            "infonce": self._infonce, "triplet": self._triplet, "cosent": self._cosent,
            "mse": self._mse,
        }  # fmt: skip
        E = len(batch.scores_E)
        anchors_ED, candidates_CD = vectors_SD[:E], vectors_SD[E:]
        losses = [
            kinds[self.kind](anchors_ED[:, :width], candidates_CD[:, :width], batch)
            for width in self.widths
        ]
        total = torch.stack(losses).mean()
        return LossParts(
            {"embedding_loss": SumAndCount(total, E)},
            self._metrics(anchors_ED, candidates_CD, batch, in_training=torch.is_grad_enabled()),
        )

    @torch.no_grad()
    def _metrics(
        self, anchors_ED: Tensor, candidates_CD: Tensor, batch: EmbedBatch, *, in_training: bool
    ) -> dict[str, SumAndCount]:
        """The share of anchors whose own positive is the nearest of the batch; of scored pairs
        that are not trained on, what their correlation follows from: see ``correlation``."""
        if self.kind in ("cosent", "mse"):
            scores_E = batch.scores_E
            near_E = F.cosine_similarity(anchors_ED, candidates_CD[: len(scores_E)])
            return {} if in_training else moments(near_E, scores_E)
        if self.kind != "infonce":
            return {}
        found_EC = cosines(anchors_ED, candidates_CD).masked_fill(batch.false_EC, -math.inf)
        own_E = torch.arange(len(found_EC), device=found_EC.device)
        return {"batch_accuracy": SumAndCount((found_EC.argmax(1) == own_E).sum(), len(found_EC))}

    def _infonce(self, anchors: Tensor, candidates: Tensor, batch: EmbedBatch) -> Tensor:
        return infonce(
            anchors, candidates, batch.false_EC,
            temperature=self.temperature, symmetric=self.symmetric,
        ).sum()  # fmt: skip

    def _triplet(self, anchors: Tensor, candidates: Tensor, batch: EmbedBatch) -> Tensor:
        E = len(batch.scores_E)
        near_E = F.cosine_similarity(anchors, candidates[:E])
        far_N = F.cosine_similarity(anchors[batch.owner_N], candidates[E:])
        lost_N = F.relu(far_N - near_E[batch.owner_N] + self.margin)
        # The mean over an example's negatives, so that each example counts as much.
        count_E = torch.bincount(batch.owner_N, minlength=E)
        return (lost_N / count_E[batch.owner_N]).sum()

    def _cosent(self, anchors: Tensor, candidates: Tensor, batch: EmbedBatch) -> Tensor:
        near_E = F.cosine_similarity(anchors, candidates[: len(batch.scores_E)])
        # One number for a batch, which counts as much as the batch has examples.
        return cosent(near_E, batch.scores_E, temperature=self.temperature) * len(near_E)

    def _mse(self, anchors: Tensor, candidates: Tensor, batch: EmbedBatch) -> Tensor:
        near_E = F.cosine_similarity(anchors, candidates[: len(batch.scores_E)])
        return ((near_E - batch.scores_E) ** 2).sum()
