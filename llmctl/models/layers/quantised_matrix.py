"""A matrix in whole numbers, in groups of inputs that share a scale and a zero.

    W = (q − z) · s,   q and z in −2^(bits−1) … 2^(bits−1) − 1

O outputs, I inputs, G groups of C inputs, I = G · C.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

READ_QUANTISED = "read_quantised"
"""The attribute of a linear layer with what reads its weights' numbers, where a folder has them."""


@dataclass(frozen=True)
class QuantisedMatrix:
    """The numbers of a matrix, and what they stand for."""

    numbers_OI: Tensor
    """In int8."""
    scale_OG: Tensor
    """In fp32, of values that bf16 holds."""
    zero_OG: Tensor
    """In int8; 0 throughout where the grid is symmetric."""
    bits: int

    @property
    def group(self) -> int:
        """Inputs of a group."""
        return self.numbers_OI.shape[1] // self.scale_OG.shape[1]

    def dequantised(self) -> Tensor:
        """The matrix in fp32, (O, I)."""
        number_OGC = self.numbers_OI.float().unflatten(1, (-1, self.group))
        off_OGC = number_OGC - self.zero_OG.float()[..., None]
        return (off_OGC * self.scale_OG.float()[..., None]).flatten(1)
