"""The parts that Transformers share: attention, feed-forward network, and their formulas.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V                   (Vaswani et al. 2017, eq. 1)
    FFN(x)             = activation(x W₁ + b₁) W₂ + b₂            (ibid., eq. 2)

B batch, T tokens, D width, N heads, H head width, F feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["gelu", "relu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
"""GELU in its exact form (Hendrycks and Gimpel 2016), as BERT was published; ReLU as in
Vaswani et al. 2017."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask``: added to the scores, broadcastable to (B, N, T, T); see ``additive_mask``."""
        B, T, D = x_BTD.shape
        qkv_3BNTH = (
            self.query_key_value(x_BTD)
            .view(B, T, 3, self.num_heads, D // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout if self.training else 0.0
        mixed_BNTH = attention(qkv_3BNTH, mask, dropout)
        return self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, D))


SHORT = 256
"""Tokens up to which the formula as written beats PyTorch's fused bf16 kernel on a processor,
whose backward pass is slow: four times at 128, once at 512 (measured on a Xeon with AMX)."""


def attention(qkv_3BNTH: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(Q Kᵀ / √d_k + mask) V, (B, N, T, H)."""
    if not (
        qkv_3BNTH.device.type == "cpu"
        and qkv_3BNTH.dtype == torch.bfloat16
        and qkv_3BNTH.shape[3] <= SHORT
    ):
        q_BNTH, k_BNTH, v_BNTH = qkv_3BNTH.unbind(0)
        return F.scaled_dot_product_attention(
            q_BNTH, k_BNTH, v_BNTH, attn_mask=mask, dropout_p=dropout
        )
    with torch.autocast("cpu", enabled=False):  # it would compute the softmax in fp32
        q_BNTH, k_BNTH, v_BNTH = qkv_3BNTH.contiguous().unbind(0)
        scores_BNTT = q_BNTH * q_BNTH.shape[-1] ** -0.5 @ k_BNTH.transpose(-1, -2)
        if mask is not None:
            scores_BNTT = scores_BNTT + mask.to(torch.bfloat16)
        weights_BNTT = F.dropout(scores_BNTT.softmax(-1), dropout, training=dropout > 0)
        return weights_BNTT @ v_BNTH


def additive_mask(allowed: Tensor) -> Tensor:
    """0 where attention may look and -∞ elsewhere, from True and False."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -math.inf)


class FeedForward(nn.Module):
    """Two linear layers with an activation between, applied to each token alone."""

    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.expand = nn.Linear(width, inner_width)
        self.contract = nn.Linear(inner_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.contract(self.activation(self.expand(x_BTD)))


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights and zero biases, as BERT and GPT-2 start; to be used with ``apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        with torch.no_grad():
            module.weight.normal_(0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
