"""Linear layers by the compiled kernels, in int8 and in int4.

The weights' numbers are those of quantised.py and int4.py. Rows are quantised to int8 as they
come, by a scale for each group of inputs, where ``Int8Linear`` has one for the row and
``Int4Linear`` takes rows as bf16. A row's result is the same bits in any company.

M rows, I inputs, O outputs, G groups of C inputs.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.inference.int4 import GROUP, parts_of, quantise_groups
from llmctl.inference.native.library import library
from llmctl.inference.quantised import INT8_MAX, quantise
from llmctl.models.layers.quantised_matrix import QuantisedMatrix

LANES = 16
"""Outputs that lie side by side; they come in pairs of these."""
FOUR = 4
"""Inputs of an output that lie side by side."""
INT8_GROUP = 64
"""Inputs of a row with a scale, of int8 layers: a common part of models' widths."""


class MatrixStruct(ctypes.Structure):
    """``Matrix`` of products.h."""

    _fields_ = (
        ("numbers", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("taken", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("bits", ctypes.c_int64),
    )


class NativeLinear(nn.Module):
    """A linear layer by the compiled kernels: see ``int8``, ``int4`` and ``of``."""

    def __init__(
        self,
        numbers: Tensor,
        scales: Tensor,
        bias_O: Tensor | None,
        *,
        shape: tuple[int, int],
        inputs: int,
        group: int,
        bits: int,
    ) -> None:
        """numbers: as products.h has them, as the scales. shape: the weight's, (O, I). inputs:
        with those that were filled up. group: inputs of a group."""
        super().__init__()
        assert group >= 32, group
        assert group % 8 == 0, group
        self._library = library()
        self.numbers, self.scales = numbers, scales
        self.bias_O = None if bias_O is None else bias_O.detach().float().contiguous()
        self.outputs, self.taken = shape
        self.struct = MatrixStruct(
            numbers=numbers.data_ptr(),
            scales=scales.data_ptr(),
            bias=None if self.bias_O is None else self.bias_O.data_ptr(),
            taken=self.taken,
            inputs=inputs,
            outputs=self.outputs,
            group=group,
            bits=bits,
        )
        self._address = ctypes.addressof(self.struct)

    @classmethod
    def int8(
        cls, weight_OI: Tensor, bias_O: Tensor | None, *, group: int = INT8_GROUP
    ) -> NativeLinear:
        """A layer with int8 weights, a scale for each output. group: inputs of a row that have a
        scale of their own."""
        weight_8_OI, scale_O = quantise(weight_OI)
        shape = _shape(weight_OI)
        unsigned_OI = (weight_8_OI.short() + INT8_MAX + 1).to(torch.uint8)
        unsigned_OI = F.pad(unsigned_OI, (0, -shape[1] % group, 0, _missing(shape[0])))
        parts = unsigned_OI.view(-1, LANES, unsigned_OI.shape[1] // FOUR, FOUR)
        return cls(
            parts.transpose(1, 2).contiguous(),
            F.pad(scale_O, (0, _missing(shape[0]))),
            bias_O,
            shape=shape,
            inputs=unsigned_OI.shape[1],
            group=group,
            bits=8,
        )

    @classmethod
    def int4(cls, weight_OI: Tensor, bias_O: Tensor | None, *, group: int = GROUP) -> NativeLinear:
        """A layer with int4 weights, rounded to the nearest, in groups of inputs."""
        shape = _shape(weight_OI)
        parts = quantise_groups(F.pad(weight_OI, (0, -shape[1] % group)), group)
        return cls._packed(*parts, bias_O, shape)

    @classmethod
    def of(cls, matrix: QuantisedMatrix, bias_O: Tensor | None) -> NativeLinear:
        """A layer with the very numbers of a matrix in 4 bits: see ``parts_of``."""
        return cls._packed(*parts_of(matrix), bias_O, _shape(matrix.numbers_OI))

    @classmethod
    def _packed(
        cls,
        number_OI: Tensor,
        scale_OG: Tensor,
        offset_OG: Tensor,
        bias_O: Tensor | None,
        shape: tuple[int, int],
    ) -> NativeLinear:
        """number_OI: 0 … 15, in whole groups of inputs."""
        inputs, groups = number_OI.shape[1], scale_OG.shape[1]
        more = (0, 0, 0, _missing(shape[0]))
        number_OI = F.pad(number_OI.to(torch.uint8), more)
        halves = number_OI.view(-1, LANES, groups, 2, inputs // groups // (2 * FOUR), FOUR)
        both = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
        scales = torch.stack([F.pad(part, more) for part in (scale_OG, offset_OG)])
        return cls(
            both.permute(0, 2, 3, 1, 4).contiguous(),
            scales.view(2, -1, LANES, groups).permute(1, 3, 0, 2).contiguous(),
            bias_O,
            shape=shape,
            inputs=inputs,
            group=inputs // groups,
            bits=4,
        )

    def forward(self, x: Tensor) -> Tensor:
        x_MI = x.reshape(-1, self.taken).float().contiguous()
        y_MO = x_MI.new_empty(len(x_MI), self.outputs)
        failed = self._library.llmctl_multiply(
            self._address, x_MI.data_ptr(), y_MO.data_ptr(), len(x_MI), torch.get_num_threads()
        )
        if failed:
            raise MemoryError
        return y_MO.view(*x.shape[:-1], self.outputs)


def _shape(weight_OI: Tensor) -> tuple[int, int]:
    return weight_OI.shape[0], weight_OI.shape[1]


def _missing(outputs: int) -> int:
    """Outputs to a whole pair of vectors."""
    return -outputs % (2 * LANES)
