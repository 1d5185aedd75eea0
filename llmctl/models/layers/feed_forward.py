"""Feed-forward networks, applied to each token alone, and their activations.

    FFN(x)    = activation(x W₁ + b₁) W₂ + b₂                     (Vaswani et al. 2017, eq. 2)
    GLU(x)    = W₃(activation(x W₁) ⊙ x W₂)                       (Shazeer 2020, eq. 6)
    SwiGLU(x) = W₃(silu(x W₁) ⊙ x W₂)                             (Shazeer 2020, eq. 6)
    GeGLU(x)  = W₃(gelu(x W₁) ⊙ x W₂)                             (Shazeer 2020, eq. 5)
    ReLU²(x)  = max(x, 0)²                                        (So et al. 2021)

B batch, T tokens, D width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def squared_relu(x: Tensor) -> Tensor:
    """The activation max(x, 0)², entry by entry."""
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


Activation = Literal["gelu", "gelu_tanh", "relu", "relu2"]
GateActivation = Literal["gelu", "silu", "relu"]
"""Activations of a gate: those of GeGLU, SwiGLU and ReGLU."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": squared_relu,
    "silu": F.silu,
}
"""GELU in its exact form (Hendrycks and Gimpel 2016), as BERT was published, and in GPT-2's
approximation; ReLU as in Vaswani et al. 2017, and squared (So et al. 2021)."""


_aten = torch.ops.aten
_GATE_GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "gelu": _aten.gelu_backward.grad_input,
    "gelu_tanh": partial(_aten.gelu_backward.grad_input, approximate="tanh"),
    "silu": _aten.silu_backward.grad_input,
}
"""The gradient of an activation's input, written to ``grad_input``."""


def gated(gate_up_F: Tensor, activation: Activation | GateActivation) -> Tensor:
    """The product activation(gate) ⊙ up, (…, F), of the two halves of (…, 2 F)."""
    if activation in _GATE_GRADIENTS and not torch.compiler.is_compiling():
        return _Gated.apply(gate_up_F, activation)
    gate_F, up_F = gate_up_F.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate_F) * up_F


class _Gated(torch.autograd.Function):
    """Keeps its input alone, and writes its gradient where the projection's lies."""

    @staticmethod
    def forward(ctx: Any, gate_up_F: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate_up_F)
        ctx.activation = activation
        gate_F, up_F = gate_up_F.chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate_F).mul_(up_F)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_F: Tensor) -> tuple[Tensor, None]:
        (gate_up_F,) = ctx.saved_tensors
        gate_F, up_F = gate_up_F.chunk(2, dim=-1)
        result_F = torch.empty_like(gate_up_F)
        grad_gate_F, grad_up_F = result_F.chunk(2, dim=-1)
        torch.mul(grad_F, ACTIVATIONS[ctx.activation](gate_F), out=grad_up_F)
        _GATE_GRADIENTS[ctx.activation](grad_F * up_F, gate_F, grad_input=grad_gate_F)
        return result_F, None


class FeedForward(nn.Module):
    """Two linear layers with an activation between, applied to each token alone."""

    def __init__(
        self,
        width: int,
        inner_width: int,
        activation: Activation,
        *,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """dropout: of what is between the layers."""
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.expand = nn.Linear(width, inner_width, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(inner_width, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(x_BTD))))


class GatedFeedForward(nn.Module):
    """W₃(activation(x W₁) ⊙ x W₂) (Shazeer 2020, eq. 6); W₁ and W₂ are one matrix."""

    def __init__(
        self,
        width: int,
        inner_width: int,
        activation: Activation | GateActivation,
        *,
        dropout: float = 0.0,
    ) -> None:
        """dropout: of what is between the layers."""
        super().__init__()
        self.activation: Activation | GateActivation = activation
        self.gate_up = nn.Linear(width, 2 * inner_width, bias=False)
        self.fused_rows = {"gate_up": [inner_width] * 2}
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(inner_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.contract(self.dropout(gated(self.gate_up(x_BTD), self.activation)))


class SwiGLU(nn.Module):
    """W₃(silu(x W₁) ⊙ x W₂) (Shazeer 2020, eq. 6); W₁ and W₂ are one matrix."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner_width, bias=False)
        self.fused_rows = {"gate_up": [inner_width] * 2}
        self.contract = nn.Linear(inner_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.contract(F.silu(gate_BTF) * up_BTF)
