"""Padded texts with masks, and the pieces of the labels' words that may stand there.

B examples, T tokens, K masks, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.inference.cloze import ClozeQuery
from llmctl.training.batches import TensorBatch


@dataclass(frozen=True)
class ClozeExample:
    """A text with masks, as many as the longest word has pieces."""

    ids: NDArray[np.int64]
    start: int
    """The place of the first mask."""
    label: int


@dataclass(frozen=True)
class ClozeBatch(TensorBatch):
    """Padded texts with masks."""

    input_ids_BT: Tensor
    mask_BT: Tensor
    start_B: Tensor
    labels_B: Tensor

    @property
    def num_positions(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"cloze_loss": len(self)}


def example_of(query: ClozeQuery, mask: int, label: int) -> ClozeExample:
    """A query as an example to learn from."""
    masks = np.full(query.longest, mask)
    return ClozeExample(
        np.concatenate([query.before, masks, query.after]), len(query.before), label
    )


def collate(examples: Sequence[ClozeExample], pad: int) -> ClozeBatch:
    """Examples padded to the longest of them."""
    longest = max(len(example.ids) for example in examples)
    ids = np.full((len(examples), longest), pad, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        mask[row, : len(example.ids)] = True
    return ClozeBatch(
        tokens_B=mask.sum(1),
        input_ids_BT=torch.from_numpy(ids),
        mask_BT=torch.from_numpy(mask),
        start_B=torch.tensor([example.start for example in examples]),
        labels_B=torch.tensor([example.label for example in examples]),
    )
