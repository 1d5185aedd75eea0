"""RMSNorm, with a gain for each entry and without.

    RMSNorm(x) = x / √(mean(x²) + ε)                              (Zhang and Sennrich 2019)

Between the matrix products of a small model such operations take half of the time, as each reads
and writes every entry. Derived from the formula one by one, it and its gradient are 10 to 15 such
passes; written out, a third of that. A compiler does better still from the formula, so that is what
it gets.

D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def rms_norm(x_D: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square normalisation x / √(mean(x²) + ε) over the last dimension, without a
    gain."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x_D, x_D.shape[-1:], eps=epsilon)
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x_D, epsilon)
    width = x_D.shape[-1]
    if x_D.numel() == width and x_D.device.type == "cpu" and x_D.dtype == torch.float32:
        # A tenth of the time of tokens that are written one by one went into tensors of one entry.
        row_D = x_D.view(-1)
        return x_D * (float(torch.dot(row_D, row_D)) / width + epsilon) ** -0.5
    return x_D * _scale_1(x_D, epsilon)


def _scale_1(x_D: Tensor, epsilon: float) -> Tensor:
    """The factors 1 / √(mean(x²) + ε), (…, 1)."""
    wide = torch.promote_types(x_D.dtype, torch.float32)
    norm_1 = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True, dtype=wide)
    return norm_1.square_().div_(x_D.shape[-1]).add_(epsilon).rsqrt_().to(x_D.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_D: Tensor, epsilon: float) -> Tensor:
        scale_1 = _scale_1(x_D, epsilon)
        y_D = x_D * scale_1
        ctx.save_for_backward(y_D, scale_1)
        return y_D

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_D: Tensor) -> tuple[Tensor, None]:
        # dx = (dy − y · mean(y · dy)) / √(mean(x²) + ε)
        y_D, scale_1 = ctx.saved_tensors
        along_1 = (grad_D * y_D).sum(-1, keepdim=True).div_(y_D.shape[-1])
        return torch.addcmul(grad_D, y_D, along_1, value=-1).mul_(scale_1), None


class PlainRMSNorm(nn.Module):
    """RMSNorm without gains."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.epsilon)


class RMSNorm(nn.Module):
    """RMSNorm with a gain for each entry."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.epsilon) * self.weight


class ShiftedRMSNorm(nn.Module):
    """RMSNorm with a gain of 1 + w for each entry, w being what is learned: Gemma's. The sum is
    taken in fp32, as in bf16 a small w beside 1 would be lost."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        normalised = rms_norm(x.float(), self.epsilon)
        return (normalised * (1.0 + self.weight.float())).to(x.dtype)
