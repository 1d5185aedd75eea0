"""Rows that hold several texts end to end, and what attention may see in them.

B batch, T tokens, S bounds of texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.models.layers.kernels import has_varlen_attention

CU_SEQLENS_STEP = 64


@dataclass(frozen=True)
class PackedSequences:
    """Rows that hold several texts end to end, as packing makes them: attention is to stay inside
    each. What is behind a row's last text is one of its own."""

    sequence_ids_BT: Tensor
    """Equal numbers where tokens of a row belong to one sequence."""
    cu_seqlens: Tensor
    """The flat places (b · T + t) where each sequence begins, int32, ascending, and B · T, which is
    repeated up to a multiple of ``CU_SEQLENS_STEP``, so that few shapes are met."""

    @classmethod
    def of(cls, sequence_ids_BT: NDArray[np.int64]) -> PackedSequences:
        """From the numbers alone."""
        begins = np.ones(sequence_ids_BT.shape, dtype=bool)
        begins[:, 1:] = sequence_ids_BT[:, 1:] != sequence_ids_BT[:, :-1]
        starts = np.flatnonzero(begins)
        cu_seqlens = np.full(
            -(-(len(starts) + 1) // CU_SEQLENS_STEP) * CU_SEQLENS_STEP, sequence_ids_BT.size
        )
        cu_seqlens[: len(starts)] = starts
        return cls(
            torch.from_numpy(sequence_ids_BT.astype(np.int32)),
            torch.from_numpy(cu_seqlens.astype(np.int32)),
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> PackedSequences:
        """A copy on another device."""
        return PackedSequences(
            *(
                part.to(device, non_blocking=non_blocking)
                for part in (self.sequence_ids_BT, self.cu_seqlens)
            )
        )

    def pin_memory(self) -> PackedSequences:
        """A copy in memory that an accelerator reads while others compute."""
        return PackedSequences(self.sequence_ids_BT.pin_memory(), self.cu_seqlens.pin_memory())

    def rows(self, begin: int, stop: int) -> PackedSequences:
        """Those of some of the rows."""
        return PackedSequences.of(self.sequence_ids_BT[begin:stop].numpy())

    def attention_mask(self, *, causal: bool = False) -> Tensor:
        """(B, T, T), bool: whether token i may attend to token j."""
        same_BTT = self.sequence_ids_BT[:, :, None] == self.sequence_ids_BT[:, None, :]
        return same_BTT.tril() if causal else same_BTT

    def supports_varlen(self, dropout: float) -> bool:
        """Whether a kernel can go by the bounds here, which does only the work inside each text."""
        return self.sequence_ids_BT.device.type == "cuda" and has_varlen_attention(dropout)
