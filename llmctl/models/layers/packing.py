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

BOUNDS_STEP = 64


@dataclass(frozen=True)
class Texts:
    """Rows that hold several texts end to end, as packing makes them: attention is to stay inside
    each. What is behind a row's last text is one of its own."""

    number_BT: Tensor
    """The same number where tokens of a row belong together."""
    bounds_S: Tensor
    """int32: the flat places (b · T + t) where each begins, ascending, and B · T; that is repeated
    up to a multiple of ``BOUNDS_STEP``, so that few shapes are met."""

    @classmethod
    def of(cls, number_BT: NDArray[np.int64]) -> Texts:
        """From the numbers alone."""
        begins = np.ones(number_BT.shape, dtype=bool)
        begins[:, 1:] = number_BT[:, 1:] != number_BT[:, :-1]
        places = np.flatnonzero(begins)
        bounds = np.full(-(-(len(places) + 1) // BOUNDS_STEP) * BOUNDS_STEP, number_BT.size)
        bounds[: len(places)] = places
        return cls(
            torch.from_numpy(number_BT.astype(np.int32)), torch.from_numpy(bounds.astype(np.int32))
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Texts:
        """The same on another device."""
        return Texts(
            *(
                part.to(device, non_blocking=non_blocking)
                for part in (self.number_BT, self.bounds_S)
            )
        )

    def pin_memory(self) -> Texts:
        """The same in memory that an accelerator reads while others compute."""
        return Texts(self.number_BT.pin_memory(), self.bounds_S.pin_memory())

    def rows(self, begin: int, stop: int) -> Texts:
        """Those of some of the rows."""
        return Texts.of(self.number_BT[begin:stop].numpy())

    def allowed(self, *, causal: bool = False) -> Tensor:
        """(B, T, T), bool: whether token i may attend to token j."""
        same_BTT = self.number_BT[:, :, None] == self.number_BT[:, None, :]
        return same_BTT.tril() if causal else same_BTT

    def kernel_for(self, dropout: float) -> bool:
        """Whether a kernel can go by the bounds here, which does only the work inside each text."""
        return self.number_BT.device.type == "cuda" and has_varlen_attention(dropout)
