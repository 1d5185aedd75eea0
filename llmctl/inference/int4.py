"""Linear layers in int4: an eighth of fp32's bytes, in groups of inputs that share a scale.

    y = W₄ x + b,   W₄ = (q − 8) · s + z,   q = round((W − z) / s) + 8 in 0 … 15

with a scale s and an offset z for each output and each group of inputs, from the group's least and
largest weight (Dettmers and Zettlemoyer 2023, §2, asymmetric). Both are kept in bf16, as rows are
taken: PyTorch's kernel for processors reads no other type fast.

M rows, I inputs, O outputs, G groups of C inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.models.layers.quantised_matrix import QuantisedMatrix

INT4_GROUPS = (32, 64, 128, 256)
"""Inputs of a group that the kernel takes."""
GROUP = 32
"""Inputs of a group where weights are rounded here."""
OUTPUT_STEP = 16
"""The kernel's outputs are a multiple of this."""
LEVELS, MIDDLE = 15, 8


class Int4Linear(nn.Module):
    """A linear layer with int4 weights; rows are taken as bf16."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, group: int = GROUP) -> None:
        super().__init__()
        missing = -weight_OI.shape[1] % group
        padding = (0, missing, 0, -len(weight_OI) % OUTPUT_STEP)
        parts = quantise_groups(F.pad(weight_OI, padding), group)
        self._take(parts, bias_O, group, len(weight_OI), missing)

    @classmethod
    def of(cls, matrix: QuantisedMatrix, bias_O: Tensor | None) -> Int4Linear:
        """A layer with the very numbers of a matrix in 4 bits: see ``parts_of``."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        outputs = len(matrix.scale_OG)
        more = -outputs % OUTPUT_STEP
        parts = [F.pad(part, (0, 0, 0, more)) for part in parts_of(matrix)]
        layer._take(parts, bias_O, matrix.group, outputs, 0)
        return layer

    def _take(
        self,
        parts: Sequence[Tensor],
        bias_O: Tensor | None,
        group: int,
        outputs: int,
        missing: int,
    ) -> None:
        """parts: numbers (O, I), scales and offsets (O, G), all filled up. missing: inputs that
        were."""
        number_OI, scale_OG, offset_OG = parts
        self.outputs, self.missing, self.group = outputs, missing, group
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(number_OI, 1)
        self.scales_GO2 = torch.stack([scale_OG.T, offset_OG.T], -1).contiguous()
        self.bias_O = None if bias_O is None else bias_O.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        x_MI = x.reshape(-1, x.shape[-1]).bfloat16()
        if self.missing:
            x_MI = F.pad(x_MI, (0, self.missing))
        y_MO = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x_MI, self.packed, self.group, self.scales_GO2
        )[:, : self.outputs].float()
        if self.bias_O is not None:
            y_MO = y_MO + self.bias_O
        return y_MO.view(*x.shape[:-1], -1)


def parts_of(matrix: QuantisedMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix's own numbers in 4 bits as ``quantise_groups`` has them: its scales as they are, its
    offsets −z · s in bf16."""
    scale_OG = matrix.scale_OG.bfloat16()
    offset_OG = (-matrix.zero_OG.float() * scale_OG.float()).bfloat16()
    return matrix.numbers_OI.int() + MIDDLE, scale_OG, offset_OG


def quantise_groups(weight_OI: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weight as numbers from 0 to 15 (O, I), and in bf16 the scale and the offset (O, G) of
    each group, by rounding to the nearest."""
    weight_OGC = weight_OI.detach().float().unflatten(1, (-1, group))
    least_OG, most_OG = weight_OGC.aminmax(dim=-1)
    # What is the same throughout is its offset.
    scale_OG = ((most_OG - least_OG) / LEVELS).clamp_(min=1e-12).bfloat16()
    offset_OG = (least_OG + MIDDLE * scale_OG.float()).bfloat16()
    number_OGC = (weight_OGC - offset_OG.float()[..., None]) / scale_OG.float()[..., None] + MIDDLE
    number_OI = number_OGC.round_().clamp_(0, LEVELS).flatten(1).int()
    return number_OI, scale_OG, offset_OG
