"""Padded examples and their classes.

B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmctl.data.tables.encoded import EncodedExample
from llmctl.formats.base import Pretrained
from llmctl.training.batches import TensorBatch


@dataclass(frozen=True)
class ExampleBatch(TensorBatch):
    """Padded examples."""

    input_ids_BT: Tensor
    segment_ids_BT: Tensor
    mask_BT: Tensor
    labels_B: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a classifier takes."""
        return self.input_ids_BT, self.segment_ids_BT, self.mask_BT

    @property
    def num_positions(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"classification_loss": len(self)}


def collate(examples: Sequence[EncodedExample], pad: int) -> ExampleBatch:
    """Examples padded to the longest of them."""
    longest = max(len(example.ids) for example in examples)
    ids = np.full((len(examples), longest), pad, dtype=np.int64)
    segments = np.zeros_like(ids)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = example.ids
        segments[row, example.second : length] = 1
        mask[row, :length] = True
    return ExampleBatch(
        tokens_B=mask.sum(1),
        input_ids_BT=torch.from_numpy(ids),
        segment_ids_BT=torch.from_numpy(segments),
        mask_BT=torch.from_numpy(mask),
        labels_B=torch.tensor([example.label for example in examples]),
    )


def cut_in_use(cut: int, total: int, folder: Pretrained) -> str:
    """A sentence that says how many texts were longer than a classifier reads."""
    limit, most = folder.max_length, folder.longest_text
    more = (
        f"finetune with --set data.max_length=…, up to {most}, for more"
        if limit < most
        else "more the network does not take"
    )
    return (
        f"{cut:,} of {total:,} texts were longer than the {limit} tokens of the finetuning and "
        f"were cut; {more}"
    )
