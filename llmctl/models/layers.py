"""The parts that Transformers share: attention, feed-forward network, and their formulas.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V                   (Vaswani et al. 2017, eq. 1)
    FFN(x)             = activation(x W₁ + b₁) W₂ + b₂            (ibid., eq. 2)

B batch, T tokens, D width, N heads, H head width, F feed-forward width.
"""

from __future__ import annotations

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
        """``mask``: bool, broadcastable to (B, N, T, T); True where attention may look."""
        B, T, D = x_BTD.shape
        qkv_B3NTH = (
            self.query_key_value(x_BTD)
            .view(B, T, 3, self.num_heads, D // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        q_BNTH, k_BNTH, v_BNTH = qkv_B3NTH.unbind(0)
        mixed_BNTH = F.scaled_dot_product_attention(
            q_BNTH,
            k_BNTH,
            v_BNTH,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, D))


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
