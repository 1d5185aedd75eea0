"""GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization", algorithm 1).

Columns are rounded one after another, and the error of each is made up for by those behind it:

    δ_F = −(w_q − round(w_q)) / [H_F⁻¹]_qq · (H_F⁻¹)_q,  H = X Xᵀ + λ I                    (eq. 2)

where F are the columns that are left. All those inverses are rows of one Cholesky factor of H⁻¹.
Columns are taken as they lie; the grid of a group is found when its first column is reached, from
the weights as they are then.

O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmctl.compression.rounding import Grid
from llmctl.models.layers.quantised_matrix import QuantisedMatrix

DAMPING = 0.01
"""The share of the diagonal's mean that λ is."""
LAZY_COLUMNS = 128
"""Columns whose errors reach the columns behind them together: a multiple of every group."""


def gptq_matrix(weight_OI: Tensor, hessian_II: Tensor, grid: Grid) -> QuantisedMatrix:
    """A matrix in numbers that keep its products with the inputs of which the Hessian is.

    hessian_II: X Xᵀ of the inputs, or a multiple of it. The group must divide the inputs.
    """
    weight_OI = weight_OI.detach().float().clone()
    factor_II = _inverse_factor(hessian_II, weight_OI)
    inputs = weight_OI.shape[1]
    number_OI = torch.empty_like(weight_OI)
    scales, zeros = [], []
    for first in range(0, inputs, LAZY_COLUMNS):
        stop = min(first + LAZY_COLUMNS, inputs)
        error_OI = torch.zeros_like(weight_OI[:, first:stop])
        for column in range(first, stop):
            if column % grid.group == 0:
                scale_O, zero_O = grid.of_group(weight_OI[:, column : column + grid.group])
                scales.append(scale_O)
                zeros.append(zero_O)
            weight_O = weight_OI[:, column]
            number_O = grid.nearest(weight_O, scales[-1], zeros[-1])
            number_OI[:, column] = number_O
            kept_O = (number_O - zeros[-1]) * scales[-1]
            error_O = (weight_O - kept_O) / factor_II[column, column]
            weight_OI[:, column:stop] -= torch.outer(error_O, factor_II[column, column:stop])
            error_OI[:, column - first] = error_O
        weight_OI[:, stop:] -= error_OI @ factor_II[first:stop, stop:]
    return QuantisedMatrix(
        number_OI.to(torch.int8),
        torch.stack(scales, 1),
        torch.stack(zeros, 1).to(torch.int8),
        grid.bits,
    )


def _inverse_factor(hessian_II: Tensor, weight_OI: Tensor) -> Tensor:
    """The upper Cholesky factor of H⁻¹. Inputs that are always zero lose their weights, in place:
    nothing tells what they should be."""
    hessian_II = hessian_II.double().clone()
    diagonal_I = hessian_II.diagonal()
    dead_I = diagonal_I == 0
    weight_OI[:, dead_I] = 0
    diagonal_I[dead_I] = 1
    diagonal_I += DAMPING * diagonal_I.mean()
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(hessian_II))
    return torch.linalg.cholesky(inverse_II, upper=True).float()
