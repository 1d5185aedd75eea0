"""Weights to whole numbers: the grid of each group, and rounding to its nearest point.

    s = (max − min) / (2^bits − 1),  z = −2^(bits−1) − min / s        asymmetric, 0 among the values
    s = max(max / (2^(bits−1) − 1), −min / 2^(bits−1)),  z = 0        symmetric

O outputs, I inputs, G groups of C inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.models.layers.quantised_matrix import QuantisedMatrix

LEAST_SCALE = 1e-12
"""The scale of a group of zeros."""


@dataclass(frozen=True)
class Grid:
    """What numbers a matrix may have."""

    bits: int
    group: int
    symmetric: bool = False

    @property
    def least(self) -> int:
        """The least number."""
        return -(1 << (self.bits - 1))

    @property
    def most(self) -> int:
        """The largest number."""
        return (1 << (self.bits - 1)) - 1

    def of_group(self, weight_XC: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and the zero (X,) of groups of weights, both in fp32; the scale is one that
        bf16 holds, as PyTorch's kernel for processors reads it."""
        low_X = weight_XC.amin(-1).clamp(max=0)
        high_X = weight_XC.amax(-1).clamp(min=0)
        if self.symmetric:
            scale_X = torch.maximum(high_X / self.most, low_X / self.least)
        else:
            scale_X = (high_X - low_X) / (self.most - self.least)
        scale_X = _up_to_bf16(scale_X.clamp(min=LEAST_SCALE))
        if self.symmetric:
            return scale_X, torch.zeros_like(scale_X)
        zero_X = (self.least - low_X / scale_X).round().clamp(self.least, self.most)
        return scale_X, zero_X

    def nearest(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The numbers of weights, in fp32."""
        return (weight / scale + zero).round().clamp(self.least, self.most)


def _up_to_bf16(scale: Tensor) -> Tensor:
    """The scales as bf16 holds them, none less than it was: a group's ends stay within its grid."""
    near = scale.bfloat16().float()
    return torch.where(near < scale, (scale * (1 + 2**-7)).bfloat16().float(), near)


def round_matrix(weight_OI: Tensor, grid: Grid) -> QuantisedMatrix:
    """Each weight at the nearest point of its group's grid. The group must divide the inputs."""
    weight_OGC = weight_OI.detach().float().unflatten(1, (-1, grid.group))
    scale_OG, zero_OG = grid.of_group(weight_OGC)
    number_OGC = grid.nearest(weight_OGC, scale_OG[..., None], zero_OG[..., None])
    return QuantisedMatrix(
        number_OGC.flatten(1).to(torch.int8), scale_OG, zero_OG.to(torch.int8), grid.bits
    )
