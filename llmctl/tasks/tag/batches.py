"""Windows of texts, padded, with a label at each piece that tells a word.

B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.tasks.tag.windows import Ints, Window
from llmctl.training.batches import TensorBatch


@dataclass(frozen=True)
class TagBatch(TensorBatch):
    """Padded windows."""

    input_ids_BT: Tensor
    mask_BT: Tensor
    labels_BT: Tensor
    """The number of a word's tag at its first piece, ``IGNORED`` elsewhere."""
    words_B: np.ndarray
    """Words that each window tells."""

    @property
    def num_positions(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"tagging_loss": int(self.words_B.sum())}


def collate(windows: Sequence[Window], labels: Sequence[Ints] | None, pad: int) -> TagBatch:
    """Windows padded to the longest of them. labels: of the words that each tells."""
    shape = len(windows), max(len(window.ids) for window in windows)
    ids_BT, labels_BT = np.full(shape, pad), np.full(shape, IGNORED)
    for row, window in enumerate(windows):
        ids_BT[row, : len(window.ids)] = window.ids
        if labels is not None:
            labels_BT[row, window.places] = labels[row]
    lengths_B = np.asarray([len(window.ids) for window in windows])
    return TagBatch(
        tokens_B=lengths_B,
        input_ids_BT=torch.from_numpy(ids_BT),
        mask_BT=torch.from_numpy(np.arange(shape[1]) < lengths_B[:, None]),
        labels_BT=torch.from_numpy(labels_BT),
        words_B=np.asarray([len(window.places) for window in windows]),
    )
