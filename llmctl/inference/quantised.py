"""Linear layers in int8: a quarter of fp32's bytes, which is most of what a new token costs.

    y = sₓ · (W₈ x₈) · s_W + b,   W₈ = round(W / s_W),  x₈ = round(x / sₓ)

with a scale s_W for each output and sₓ for each row of x, so that the largest magnitude becomes
127 and zero stays zero (symmetric; Dettmers et al. 2022, "vector-wise", without its outliers). The
products are sums of int32, exact whatever their order. A row's result depends on that row alone,
where PyTorch's own dynamic quantisation takes one sₓ for the batch.

Rows are given to the product as unsigned numbers around a zero point: for signed ones oneDNN has
kernels on processors with AMX only, and elsewhere takes 500 times as long.

Measured at GPT-2's shapes on two cores of a Xeon with AMX, µs for the layers of a block and for the
output layer: with one row oneDNN 487 and 1517, FBGEMM 282 and 1230; with eight rows 600 and 1800
against 715 and 2430. _weight_int8pack_mm and _int_mm are slower than either.

M rows, I inputs, O outputs.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor, nn

INT8_MAX = 127
"""The largest quantised weight; symmetric, so −128 is not used."""
HALF_LARGEST = 63
"""The largest quantised value of rows where products are summed in 16 bits by pairs, which 2 · 255
· 127 would overflow: on processors without VNNI."""
TINY = 1e-30
"""The scale of what is zero throughout, which must not be divided by zero."""


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; the rows are quantised as they come. By oneDNN."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, *, largest: int | None = None
    ) -> None:
        """largest: magnitude of quantised rows; by default what this processor can."""
        super().__init__()
        weight_8_OI, self.scale_O = quantise(weight_OI)
        self.packed = torch.ops.onednn.qlinear_prepack(weight_8_OI, None)
        self.weight_zero_O = torch.zeros(len(weight_OI), dtype=torch.long)
        self.bias_O = None if bias_O is None else bias_O.detach().float()
        self.largest = largest or largest_in_rows(type(self))  # type: ignore[arg-type]
        # With the half that makes cutting off rounding.
        self.zero = torch.tensor(self.largest + 1.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:  # one row: a number serves, which saves three passes
            scale = scale_of_row(x, self.largest)
            return self._product(torch.add(self.zero, x, alpha=1 / scale), scale, self.bias_O)
        scale_M1 = scales_of_rows(x).div_(self.largest)
        y = self._product((x / scale_M1).add_(self.zero), 1.0, None)
        if self.bias_O is None:
            return y.mul_(scale_M1)
        return torch.addcmul(self.bias_O, y, scale_M1)

    def _product(self, x: Tensor, scale: float, bias_O: Tensor | None) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x.to(torch.uint8), scale, self.largest + 1,
            self.packed, self.scale_O, self.weight_zero_O, bias_O,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


class OneRowInt8Linear(nn.Module):
    """An int8 layer by FBGEMM, which is on x86 alone: the faster one for a single row."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, *, largest: int | None = None
    ) -> None:
        """largest: magnitude of quantised rows; by default what this processor can."""
        super().__init__()
        weight_8_OI, scale_O = quantise(weight_OI)
        self.packed = _fbgemm_packed(weight_8_OI, scale_O)
        self.bias_O = None if bias_O is None else bias_O.detach().float()
        self.largest = largest or largest_in_rows(type(self))  # type: ignore[arg-type]

    @staticmethod
    def is_available() -> bool:
        return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
            torch, "_make_per_channel_quantized_tensor"
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            y = self._product(x, scale_of_row(x, self.largest))
        else:
            scale_M1 = scales_of_rows(x)
            y = self._product(x / scale_M1, 1 / self.largest).mul_(scale_M1)
        return y if self.bias_O is None else y.add_(self.bias_O)

    def _product(self, x: Tensor, scale: float) -> Tensor:
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x, scale, self.largest + 1, self.packed
        )


def _fbgemm_packed(weight_8_OI: Tensor, scale_O: Tensor) -> torch.ScriptObject:
    """A weight in FBGEMM's form. Which library packs is a setting of the process."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():  # PyTorch means to give up tensors of this kind
            warnings.simplefilter("ignore", UserWarning)
            zero_O = torch.zeros(len(scale_O), dtype=torch.long)
            weight_OI = torch._make_per_channel_quantized_tensor(
                weight_8_OI, scale_O.double(), zero_O, 0
            )
            return torch.ops.quantized.linear_prepack(weight_OI, None)
    finally:
        torch.backends.quantized.engine = engine


def quantise(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The weight in int8, and the scale of each output (O,)."""
    weight_OI = weight_OI.detach().float()
    scale_O = weight_OI.abs().amax(1).clamp_(min=TINY).div_(INT8_MAX)
    return (weight_OI / scale_O[:, None]).round_().to(torch.int8), scale_O


def scale_of_row(x: Tensor, largest: int) -> float:
    """By which a single row is divided to have this largest magnitude."""
    return max(float(x.max()), -float(x.min()), TINY) / largest


def scales_of_rows(x: Tensor) -> Tensor:
    """The largest magnitude of each row, (…, 1); by abs and amax, for PyTorch's norm of that kind
    takes ten times as long."""
    return x.abs().amax(-1, keepdim=True).clamp_(min=TINY)


@cache
def largest_in_rows(layer: type[Int8Linear | OneRowInt8Linear]) -> int:
    """The largest magnitude of rows with which a layer's sums are exact on this processor, by
    trying: all weights and rows are as large as they come."""
    weight_OI = torch.ones(64, 64)
    trial = layer(weight_OI, None, largest=INT8_MAX)
    for rows in (1, 8):
        if (trial(torch.ones(rows, 64)) - 64).abs().max() > 1e-3:
            return HALF_LARGEST
    return INT8_MAX
