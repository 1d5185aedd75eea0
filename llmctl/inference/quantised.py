"""Linear layers in int8: a quarter of fp32's bytes, which is most of what a new token costs.

    y = sₓ · (W₈ x₈) · s_W + b,   W₈ = round(W / s_W),  x₈ = round(x / sₓ)

with a scale s_W for each output and sₓ for each row of x, so that the largest magnitude becomes
127 and zero stays zero (symmetric; Dettmers et al. 2022, "vector-wise", without its outliers). The
products are sums of int32, exact whatever their order. A row's result depends on that row alone,
where PyTorch's own dynamic quantisation takes one sₓ for the batch.

Measured at GPT-2's shapes, one row and eight, one thread of a Xeon with AMX, GB/s of the weights
as if they were fp32 (F.linear on fp32: 14 and 5): this 40 and 39; torch.ao's dynamic linear 46
and 28; _weight_int8pack_mm with bf16 rows 26 and 11, with fp32 rows 6 and 1; _int_mm 25 and 24.

M rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127
"""Symmetric: −128 is not used."""
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
        self.zero_O = torch.zeros(len(weight_OI), dtype=torch.long)
        self.bias_O = None if bias_O is None else bias_O.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
        if scale.numel() == 1:  # a number can be given to the product, which saves three passes
            number = max(float(scale), TINY) / LARGEST
            return self._product((x / number).round_(), number, self.bias_O)
        scale = scale.clamp_(min=TINY).div_(LARGEST)
        y = self._product((x / scale).round_(), 1.0, None)
        return y.mul_(scale) if self.bias_O is None else torch.addcmul(self.bias_O, y, scale)

    def _product(self, rounded: Tensor, scale: float, bias_O: Tensor | None) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            rounded.to(torch.int8), scale, 0,
            self.packed, self.scale_O, self.zero_O, bias_O,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
