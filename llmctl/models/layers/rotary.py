"""Rotary positions: each pair of a head's entries is turned by an angle (Su et al. 2021).

    RoPE(x, p) = x with its pairs turned by p · θ⁻²ⁱᐟᴴ

Written out, it and its gradient read and write every entry a third as often as derived operation
by operation; see norms.py. A compiler gets the formula.

H head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmctl.models.layers.rope_scaling import RopeScaling


def rotary_table(
    positions: int, head_size: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles p · θ⁻²ⁱᐟᴴ, each (positions, H / 2), or of scaled ones.

    The angles are rounded to fp32 as everywhere else, so that models of others behave as theirs.
    """
    frequencies = plain_frequencies(head_size, theta)
    amplitude = np.float32(1.0)
    if scaling is not None:
        frequencies = scaling.frequencies(frequencies, theta)
        amplitude = np.float32(scaling.amplitude)
    # In NumPy: PyTorch's first sine in a process, over two threads, has other bits at times.
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    cos, sin = np.cos(angles) * amplitude, np.sin(angles) * amplitude
    return torch.from_numpy(cos), torch.from_numpy(sin)


def plain_frequencies(head_size: int, theta: float) -> NDArray[np.float32]:
    """The frequencies θ⁻²ⁱᐟᴴ, (H / 2)."""
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)


def rotate(x_H: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (xᵢ, xᵢ₊ₕ) of a head's halves turned by their angles.

    cos, sin: broadcastable to (…, H / 2), or ``for_halves`` to (…, H).
    """
    cos, sin = cos.to(x_H.dtype), sin.to(x_H.dtype)
    if cos.shape[-1] == x_H.shape[-1]:
        return (x_H * cos).addcmul_(x_H.roll(x_H.shape[-1] // 2, -1), sin)
    if torch.compiler.is_compiling():
        first, second = x_H.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return _Rotation.apply(x_H, cos, sin)


def for_halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Tables (…, H) of what both halves of a head are multiplied by, of (…, H / 2): without a
    gradient a rotation is then three operations, and of the same bits."""
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


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


def rotate_fused(qkv_BT3NH: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with their pairs turned, and values, (B, T, N, H) each, of what one
    projection gives.

    cos, sin: broadcastable to (B, T, N, H / 2).
    """
    cos, sin = cos.to(qkv_BT3NH.dtype), sin.to(qkv_BT3NH.dtype)
    if torch.compiler.is_compiling():
        q_BTNH, k_BTNH, v_BTNH = qkv_BT3NH.unbind(2)
        return rotate(q_BTNH, cos, sin), rotate(k_BTNH, cos, sin), v_BTNH
    parts: tuple[Tensor, Tensor, Tensor] = _FusedRotation.apply(qkv_BT3NH, cos, sin)
    return parts


class _FusedRotation(torch.autograd.Function):
    """Its gradient is written where the projection's lies: cut apart by operations, three tensors
    of zeros would be added up."""

    @staticmethod
    def forward(
        ctx: Any, qkv_BT3NH: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q_BTNH, k_BTNH, v_BTNH = qkv_BT3NH.unbind(2)
        return _turned(q_BTNH, cos, sin, 1), _turned(k_BTNH, cos, sin, 1), v_BTNH.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_BTNH: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        B, T, N, H = grads_BTNH[0].shape
        grad_BT3NH = grads_BTNH[0].new_empty(B, T, 3, N, H)
        for grad_BTNH, target_BTNH in zip(grads_BTNH[:2], grad_BT3NH.unbind(2), strict=False):
            _turned(grad_BTNH, cos, sin, -1, target_BTNH)
        grad_BT3NH[:, :, 2] = grads_BTNH[2]
        return grad_BT3NH, None, None


def _turned(
    x_H: Tensor, cos: Tensor, sin: Tensor, direction: int, y_H: Tensor | None = None
) -> Tensor:
    """y_H: where the result goes, if there is such a place."""
    first, second = x_H.chunk(2, dim=-1)
    if y_H is None:
        y_H = torch.empty_like(x_H)
    first_y, second_y = y_H.chunk(2, dim=-1)
    torch.mul(first, cos, out=first_y).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=second_y).addcmul_(first, sin, value=direction)
    return y_H
