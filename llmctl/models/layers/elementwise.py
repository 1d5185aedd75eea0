"""What a decoder does to each entry or each row, in few passes over memory.

    RMSNorm(x)    = x / √(mean(x²) + ε)                           (Zhang and Sennrich 2019)
    RoPE(x, p)    = x with its pairs turned by p · θ⁻²ⁱᐟᴴ         (Su et al. 2021)
    ReLU²(x)      = max(x, 0)²                                    (So et al. 2021)

Between the matrix products of a small model these take half of the time, as each operation reads
and writes every entry. Derived from their formulas one by one, they and their gradients are 10 to
15 such passes; written out, a third of that. A compiler does better still from the formulas, so it
gets those.

D width, H head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def rms_norm(x_D: Tensor, epsilon: float) -> Tensor:
    """x / √(mean(x²) + ε) over the last dimension, without a gain."""
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


def rotate(x_H: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (xᵢ, xᵢ₊ₕ) of a head's halves turned by their angles.

    cos, sin: broadcastable to (…, H / 2).
    """
    cos, sin = cos.to(x_H.dtype), sin.to(x_H.dtype)
    if torch.compiler.is_compiling():
        first, second = x_H.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return _Rotation.apply(x_H, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_H: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x_H, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_H: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad_H, cos, sin, -1), None, None  # turned back


def _turned(x_H: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    first, second = x_H.chunk(2, dim=-1)
    y_H = torch.empty_like(x_H)
    first_y, second_y = y_H.chunk(2, dim=-1)
    torch.mul(first, cos, out=first_y).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=second_y).addcmul_(first, sin, value=direction)
    return y_H


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², entry by entry."""
    if torch.compiler.is_compiling():
        return F.relu(x).square()
    return _SquaredReLU.apply(x)


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


def additive_mask(allowed: Tensor) -> Tensor:
    """0 where attention may look and -∞ elsewhere, from True and False."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -math.inf)
