"""Llama's self-attention: queries and keys are turned by their positions (Su et al. 2021).

B batch, T tokens, N heads, K key/value heads, M = N + 2 K heads of a projection, H head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.context import Context
from llmctl.models.layers.norms import RMSNorm
from llmctl.models.layers.rotary import rotate

if TYPE_CHECKING:
    from llmctl.models.llama import LlamaConfig


class LlamaAttention(CausalSelfAttention):
    """Self-attention with rotary positions, behind a normalisation where there is one."""

    def __init__(self, config: LlamaConfig, layer: int = 0) -> None:
        super().__init__(
            config.hidden_size,
            config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_size=config.head_size,
            bias=False,
            qkv_bias=config.qkv_bias,
            dropout=0.0,
        )
        self.normalised, self.is_turned = config.qk_norm, config.is_turned(layer)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_size, config.norm_epsilon)
            self.key_norm = RMSNorm(config.head_size, config.norm_epsilon)

    def split_heads(self, heads_BMTH: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        if self.normalised or not self.is_turned or torch.is_grad_enabled():
            return super().split_heads(heads_BMTH, context)
        assert context.cos is not None
        assert context.sin is not None
        # Queries and keys turn together where no gradient has to be put together again.
        N, K = self.num_heads, self.num_kv_heads
        qk_BMTH = rotate(heads_BMTH[:, : N + K], context.cos, context.sin)
        return qk_BMTH[:, :N], qk_BMTH[:, N:], heads_BMTH[:, N + K :]

    def apply_positions(
        self, q_BNTH: Tensor, k_BKTH: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        q_BNTH, k_BKTH = self.query_norm(q_BNTH), self.key_norm(k_BKTH)
        if not self.is_turned:
            return q_BNTH, k_BKTH
        assert context.cos is not None
        assert context.sin is not None
        cos, sin = context.cos, context.sin
        return rotate(q_BNTH, cos, sin), rotate(k_BKTH, cos, sin)
