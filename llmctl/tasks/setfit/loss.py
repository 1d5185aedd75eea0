"""The loss of SetFit's first step: texts of one class near each other, those of two far apart.

Tunstall et al. 2022 (§3.1) draw as many pairs of one class as of two, whose cosines are to be 1
and 0:

    ½ · mean over pairs of one class of (1 − c)²  +  ½ · mean over pairs of two classes of c²

Here these are all pairs of a batch, for which each text is read once.

E examples, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmctl.inference.embedding import pack_texts
from llmctl.models.heads.embed import Embedder
from llmctl.tasks.embed.batches import PackedBatch, packed_fields
from llmctl.tasks.embed.loss import cosines
from llmctl.training.batches import ComparedLoss, LossParts, SumAndCount


@dataclass(frozen=True)
class LabelledTexts(PackedBatch):
    """Texts, packed in rows, and their classes."""

    labels_E: Tensor

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"contrastive_loss": len(self.labels_E)}


def collate(examples: Sequence[Any], pad: int) -> LabelledTexts:
    """A batch of encoded examples."""
    rows = pack_texts([example.ids for example in examples], pad)
    labels = torch.tensor([int(example.label) for example in examples])
    return LabelledTexts(**packed_fields(rows), labels_E=labels)


def contrastive(vectors_ED: Tensor, labels_E: Tensor) -> Tensor:
    """The loss of a batch: one number. A kind of pair that the batch doesn't have adds nothing."""
    near_EE = cosines(vectors_ED, vectors_ED)
    same_EE = labels_E[:, None] == labels_E[None, :]
    once_EE = torch.ones_like(same_EE).triu(1)
    same_P, other_P = near_EE[same_EE & once_EE], near_EE[~same_EE & once_EE]
    losses = [(1.0 - same_P).square(), other_P.square()]
    return torch.stack([loss_P.sum() / max(len(loss_P), 1) for loss_P in losses]).mean()


class SetfitLoss(ComparedLoss):
    """What the vectors are trained by."""

    def encode(self, model: Embedder, batch: Any) -> Tensor:
        vectors: Tensor = model(*batch.inputs)
        return vectors

    def compare(self, encoded: Tensor, batch: LabelledTexts) -> LossParts:
        vectors_ED = encoded[batch.place_S].float()
        count = len(vectors_ED)
        # One number for a batch, which counts as much as the batch has examples.
        total = contrastive(vectors_ED, batch.labels_E) * count
        return LossParts({"contrastive_loss": SumAndCount(total, count)})
