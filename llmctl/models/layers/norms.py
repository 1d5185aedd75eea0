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
    return _RMSNorm.apply(x_D, epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_D: Tensor, epsilon: float) -> Tensor:
        wide = torch.promote_types(x_D.dtype, torch.float32)
        norm_1 = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True, dtype=wide)
        scale_1 = norm_1.square_().div_(x_D.shape[-1]).add_(epsilon).rsqrt_().to(x_D.dtype)
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
