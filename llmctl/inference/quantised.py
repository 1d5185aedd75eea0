"""Linear layers in int8: a quarter of fp32's bytes, which is most of what a new token costs.

    y = sₓ · (W₈ x₈) · s_W + b,   W₈ = round(W / s_W),  x₈ = round(x / sₓ)

with a scale s_W for each output and sₓ for each row of x, so that the largest magnitude becomes
127 and zero stays zero (symmetric; Dettmers et al. 2022, "vector-wise", without its outliers). The
products are sums of int32, exact whatever their order. A row's result depends on that row alone,
where PyTorch's own dynamic quantisation takes one sₓ for the batch.

Rows are given to the product as unsigned numbers around a zero point: for signed ones oneDNN has
kernels on processors with AMX only, and elsewhere takes 500 times as long.

Measured at GPT-2's shapes, one row and eight, one thread of a Xeon with AMX, GB/s of the weights
as if they were fp32 (F.linear on fp32: 14 and 5): this 40 and 39; torch.ao's dynamic linear 46
and 28; _weight_int8pack_mm with bf16 rows 26 and 11, with fp32 rows 6 and 1; _int_mm 25 and 24.

M rows, I inputs, O outputs.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

LARGEST = 127
"""Of the weights; symmetric, so −128 is not used."""
HALF_LARGEST = 63
"""Of the rows where products are summed in 16 bits by pairs, which 2 · 255 · 127 would overflow:
on processors without VNNI."""
TINY = 1e-30
"""The scale of what is zero throughout, which must not be divided by zero."""


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; the rows are quantised as they come."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        weight_OI = weight_OI.detach().float()
        self.scale_O = weight_OI.abs().amax(1).clamp_(min=TINY).div_(LARGEST)
        rounded_OI = (weight_OI / self.scale_O[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded_OI, None)
        self.weight_zero_O = torch.zeros(len(weight_OI), dtype=torch.long)
        self.bias_O = None if bias_O is None else bias_O.detach().float()
        self.largest = largest_in_rows()
        # With the half that makes cutting off rounding.
        self.zero = torch.tensor(self.largest + 1.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:  # one row: a number serves, which saves three passes
            number = max(float(x.max()), -float(x.min()), TINY) / self.largest
            return self._product(torch.add(self.zero, x, alpha=1 / number), number, self.bias_O)
        scale = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
        scale = scale.clamp_(min=TINY).div_(self.largest)
        y = self._product((x / scale).add_(self.zero), 1.0, None)
        return y.mul_(scale) if self.bias_O is None else torch.addcmul(self.bias_O, y, scale)

    def _product(self, x: Tensor, scale: float, bias_O: Tensor | None) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x.to(torch.uint8), scale, self.largest + 1,
            self.packed, self.scale_O, self.weight_zero_O, bias_O,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


@cache
def largest_in_rows() -> int:
    """The largest magnitude of rows with which this processor's sums are exact, by trying."""
    weight_OI = torch.full((64, 64), LARGEST, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight_OI, None)
    one_O, zero_O = torch.ones(64), torch.zeros(64, dtype=torch.long)
    for rows in (1, 8):
        x_MI = torch.full((rows, 64), 2 * LARGEST + 1, dtype=torch.uint8)
        y_MO = torch.ops.onednn.qlinear_pointwise(
            x_MI, 1.0, LARGEST + 1, packed, one_O, zero_O, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        if not (y_MO == 64 * LARGEST * LARGEST).all():
            return HALF_LARGEST
    return LARGEST
