"""Packed rows with hidden tokens, and for each of these the number by which another is drawn.

The numbers come from a counter-based generator by the batch and the place in it, so that batch N
and the step that it makes are the same after a stop, and however the batch is divided.

B rows, T tokens in a row, M hidden tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from llmctl.data.packing import PackedBatches
from llmctl.data.random import key_of, uniform
from llmctl.tasks.electra.config import ElectraObjective
from llmctl.tasks.masked_lm.batches import MaskedBatch, MaskedBatches, MaskingVocab


@dataclass(frozen=True)
class ReplacedBatch(MaskedBatch):
    """Packed rows with hidden tokens that the generator replaces."""

    drawn_M: Tensor
    """For each hidden token a number in [0, 1), by which its replacement is drawn."""
    judged_BT: Tensor
    """Bool: whether the discriminator is asked, which it is of all but special tokens."""

    @property
    def loss_denominators(self) -> dict[str, int]:
        judged = int(self.judged_BT.sum())
        return {"generator_loss": len(self.labels_M), "detection_loss": judged}

    def rows(self, begin: int, stop: int) -> Self:
        T = self.input_ids_BT.shape[1]
        first, end = torch.searchsorted(self.masked_M, torch.tensor([begin * T, stop * T])).tolist()
        part = super().rows(begin, stop)
        values: dict[str, Any] = {entry.name: getattr(part, entry.name) for entry in fields(part)}
        values |= {
            "drawn_M": self.drawn_M[first:end],
            "judged_BT": self.judged_BT[begin:stop],
        }
        return type(self)(**values)


class ReplacedBatches:
    """The batches of a split."""

    def __init__(
        self,
        packed: PackedBatches,
        vocabulary: MaskingVocab,
        objective: ElectraObjective,
        sequence_length: int,
        seed: int,
    ) -> None:
        self.masked = MaskedBatches(packed, vocabulary, objective.masking, sequence_length, seed)
        self._vocabulary, self._key = vocabulary, key_of(seed, "replace")

    @property
    def per_epoch(self) -> int:
        return self.masked.per_epoch

    def __call__(self, number: int) -> ReplacedBatch:
        batch = self.masked(number)
        original = batch.input_ids_BT.flatten().clone()
        original[batch.masked_M] = batch.labels_M
        judged = ~self._vocabulary.is_special[original.numpy()]
        drawn = uniform(self._key, number, batch.masked_M.numpy())
        return ReplacedBatch(
            **{entry.name: getattr(batch, entry.name) for entry in fields(batch)},
            drawn_M=torch.from_numpy(drawn.astype(np.float64)),
            judged_BT=torch.from_numpy(judged).view(batch.input_ids_BT.shape),
        )
