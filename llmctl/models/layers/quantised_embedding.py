"""A table of embeddings in whole numbers: a row becomes what its numbers stand for when it is read.

Numbers of 4 bits lie two in a byte, the first of each in its lower half.

V rows, D width, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmctl.models.layers.quantised_matrix import QuantisedMatrix

NIBBLE, NIBBLE_OFFSET = 4, 8
"""Bits of half a byte, and what is added to a number to make it one of 0 … 15."""


class QuantisedEmbedding(nn.Embedding):
    """Embeddings whose table is kept in 4 or 8 bits: for reading alone."""

    numbers_VD: Tensor
    scale_VG: Tensor
    zero_VG: Tensor | None

    def __init__(self, matrix: QuantisedMatrix, *, factor: float = 1.0) -> None:
        """factor: what rows are multiplied by when they are read, and as an output layer not."""
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = matrix.numbers_OI.shape
        self.bits, self.factor = matrix.bits, factor
        numbers = matrix.numbers_OI
        if matrix.bits == NIBBLE:
            pairs = (numbers.int() + NIBBLE_OFFSET).to(torch.uint8).unflatten(1, (-1, 2))
            numbers = pairs[..., 0] | (pairs[..., 1] << NIBBLE)
        self.register_buffer("numbers_VD", numbers.contiguous())
        self.register_buffer("scale_VG", matrix.scale_OG.bfloat16())
        self.register_buffer("zero_VG", matrix.zero_OG if matrix.zero_OG.any() else None)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Embeddings (B, T, D), in fp32."""
        rows = self._rows(input_ids_BT)
        return rows if self.factor == 1.0 else rows * self.factor

    def _rows(self, ids: Tensor) -> Tensor:
        numbers = self.numbers_VD[ids]
        if self.bits == NIBBLE:
            halves = torch.stack([numbers & 0xF, numbers >> NIBBLE], -1).flatten(-2)
            numbers = halves.to(torch.int8) - NIBBLE_OFFSET
        scale = self.scale_VG[ids].float()
        values = numbers.unflatten(-1, (scale.shape[-1], -1)).float()
        if self.zero_VG is not None:
            values = values - self.zero_VG[ids].float()[..., None]
        return (values * scale[..., None]).flatten(-2)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The whole table in fp32, made anew at each call."""
        return self._rows(torch.arange(self.num_embeddings, device=self.scale_VG.device))

    def like(self) -> Tensor:
        """No numbers, in the type and on the device of the embeddings."""
        return self.scale_VG.new_empty(0, dtype=torch.float32)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


def bytes_of_table(matrix: QuantisedMatrix) -> int:
    """What a table takes in memory: its numbers, a scale in bf16 for each group, and its zero where
    there are some."""
    groups = matrix.scale_OG.numel()
    zeros = groups if matrix.zero_OG.any() else 0
    return matrix.numbers_OI.numel() * matrix.bits // 8 + 2 * groups + zeros
