"""Attention, by the kernel that suits the device, and the self-attention of both kinds of network.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V                   (Vaswani et al. 2017, eq. 1)

B batch, T tokens, M = B · T, S tokens that may be attended to, D width, N heads, K key/value heads,
H head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmctl.models.layers.kernels import suits_cudnn

if TYPE_CHECKING:
    from llmctl.models.layers.context import Context
    from llmctl.models.layers.packing import PackedSequences
    from llmctl.models.layers.virtual_tokens import Virtual

SHORT_ATTENTION = 256
"""Tokens up to which the formula as written beats PyTorch's fused bf16 kernel on a processor,
whose backward pass is slow: four times at 128, once at 512 (measured on a Xeon with AMX)."""

_recorded: list[Tensor] | None = None


@contextmanager
def recorded_attention() -> Iterator[list[Tensor]]:
    """Keep the weights (B, N, T, S) of every attention that is computed meanwhile, in order; of
    packed rows, which have no table of them, nothing."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def attention_weights(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights softmax(Q Kᵀ / √d_k + mask) in fp32, (B, N, T, S), without a gradient; its
    arguments are those of ``attention``."""
    q_BNTH, k_BKSH = q_BNTH.detach(), k_BKSH.detach()
    k_BNSH = k_BKSH.repeat_interleave(q_BNTH.shape[1] // k_BKSH.shape[1], 1)
    scores_BNTS = (q_BNTH @ k_BNSH.transpose(-1, -2)).float()
    scores_BNTS = scores_BNTS * (q_BNTH.shape[-1] ** -0.5 if scale is None else scale)
    for added in (bias, mask):
        if added is not None:
            scores_BNTS = scores_BNTS + added
    if causal:
        seen_TS = torch.ones(scores_BNTS.shape[-2:], dtype=torch.bool, device=q_BNTH.device).tril_()
        scores_BNTS = scores_BNTS.masked_fill(~seen_TS, -math.inf)
    return scores_BNTS.softmax(-1)


def attention(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    packed: PackedSequences | None = None,
    radius: int | None = None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention softmax(Q Kᵀ / √d_k + mask) V, (B, N, T, H).

    mask: see ``additive_mask``. bias: added to the scores too, (1, N, T, S), and learned: see
    relative_bias.py. scale: of the scores, in the place of 1 / √d_k. causal: token t attends up to
    itself, where T = S and there is neither mask nor bias. packed: attention stays inside each,
    without a mask or dropout; see ``PackedSequences.supports_varlen``; radius: with them, how many
    tokens on each side a token attends to. With fewer key/value heads than heads, consecutive heads
    share one (Ainslie et al. 2023).
    """
    groups = q_BNTH.shape[1] // k_BKSH.shape[1]
    if _recorded is not None and packed is None:
        _recorded.append(attention_weights(q_BNTH, k_BKSH, mask, causal, bias, scale))
    if packed is not None:
        assert bias is None
        assert scale is None
        return _varlen_attention(q_BNTH, k_BKSH, v_BKSH, packed, causal, radius)
    if mask is None and bias is None and not dropout and suits_cudnn(q_BNTH):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(
                q_BNTH, k_BKSH, v_BKSH, is_causal=causal, scale=scale, enable_gqa=groups > 1
            )
    learned = bias is not None and bias.requires_grad
    if not _better_written_out(q_BNTH, k_BKSH, learned):
        if bias is not None:
            mask = bias if mask is None else bias + mask
        return F.scaled_dot_product_attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            attn_mask=mask if mask is None else mask.to(q_BNTH.dtype),
            dropout_p=dropout,
            is_causal=causal,
            scale=scale,
            enable_gqa=groups > 1,
        )
    if causal:
        T = q_BNTH.shape[2]
        mask = additive_mask(torch.ones(T, T, dtype=torch.bool, device=q_BNTH.device).tril_())
    with torch.autocast("cpu", enabled=False):  # it would compute the softmax in fp32
        if k_BKSH.requires_grad:
            k_BKSH, v_BKSH = k_BKSH.contiguous(), v_BKSH.contiguous()
        # Queries that share keys are rows of one product with them, M = B · K of these.
        B, N, T, H = q_BNTH.shape
        q_MGH = q_BNTH.reshape(-1, groups * T, H)
        nothing = q_MGH.new_empty(())
        scores_MGS = torch.baddbmm(
            nothing,
            q_MGH,
            k_BKSH.transpose(-1, -2).flatten(0, 1),
            beta=0,
            alpha=H**-0.5 if scale is None else scale,
        )
        scores_BNTS = scores_MGS.view(B, N, T, -1)
        for added in (bias, mask):
            if added is not None:
                scores_BNTS = scores_BNTS + added.to(scores_BNTS.dtype)
        weights_BNTS = F.dropout(scores_BNTS.softmax(-1), dropout, training=dropout > 0)
        weights_MGS = weights_BNTS.view(scores_MGS.shape)
        return torch.bmm(weights_MGS, v_BKSH.flatten(0, 1)).view(B, N, T, H)


def _better_written_out(q_BNTH: Tensor, k_BKSH: Tensor, learned_bias: bool) -> bool:
    """Whether the formula's own products are faster than a fused kernel, of which a processor has
    none that gives a bias's gradient."""
    if q_BNTH.device.type != "cpu":
        return False
    if learned_bias:
        return True
    short = q_BNTH.dtype == torch.bfloat16 and k_BKSH.shape[2] <= SHORT_ATTENTION
    return short or k_BKSH.stride(-1) != 1


def _varlen_attention(
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    packed: PackedSequences,
    causal: bool,
    radius: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    B, N, T, _ = q_BNTH.shape
    q_MNH, k_MNH, v_MNH = (
        part.repeat_interleave(N // part.shape[1], 1).transpose(1, 2).flatten(0, 1)
        for part in (q_BNTH, k_BKTH, v_BKTH)
    )
    reach = -1 if radius is None else radius
    window = (reach, 0 if causal else reach)
    cu_seqlens = packed.cu_seqlens
    mixed_MNH = varlen_attn(q_MNH, k_MNH, v_MNH, cu_seqlens, cu_seqlens, T, T, window_size=window)
    assert isinstance(mixed_MNH, Tensor)  # nothing else was asked for
    return mixed_MNH.unflatten(0, (B, T)).transpose(1, 2)


def additive_mask(allowed: Tensor) -> Tensor:
    """0 where attention may look and -∞ elsewhere, from True and False."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -math.inf)


def to_column_major(k_BKSH: Tensor) -> Tensor:
    """Keys that many queries will come to, laid out for the product with them on a processor: with
    few queries at a time it takes half the time of the fused kernel."""
    if k_BKSH.device.type != "cpu":
        return k_BKSH
    return k_BKSH.transpose(-1, -2).contiguous().transpose(-1, -2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.fused_rows = {"query_key_value": [width] * 3}
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None = None,
        packed: PackedSequences | None = None,
        virtual: Virtual | None = None,
        layer: int = 0,
    ) -> Tensor:
        """mask: added to the scores, broadcastable to (B, N, T, T); see ``additive_mask``. packed:
        those of packed rows, in a mask's place, where ``PackedSequences.supports_varlen`` says so.
        virtual: tokens whose keys and values of the ``layer`` may be learned."""
        B, T, D = x_BTD.shape
        q_BNTH, k_BNTH, v_BNTH = self._heads(self.query_key_value(x_BTD))
        dropout = self.dropout if self.training else 0.0
        if virtual is not None:
            k_BNTH, v_BNTH = virtual.keys_values(layer, k_BNTH, v_BNTH)
        mixed_BNTH = attention(q_BNTH, k_BNTH, v_BNTH, mask=mask, packed=packed, dropout=dropout)
        return self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, D))

    def mixed_at(self, qkv_BTE: Tensor, places_B: Tensor | None) -> Tensor:
        """What attention gives for projections that are there already, without a mask: (B, T, D),
        or of one place of each row (B, 1, D)."""
        q_BNTH, k_BNTH, v_BNTH = self._heads(qkv_BTE)
        if places_B is not None:
            rows = torch.arange(len(places_B), device=places_B.device)
            q_BNTH = q_BNTH[rows, :, places_B].unsqueeze(2)
        mixed_BNTH = attention(q_BNTH, k_BNTH, v_BNTH)
        return self.output(mixed_BNTH.transpose(1, 2).flatten(2))

    def _heads(self, qkv_BTE: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (B, N, T, H) each. E: three widths."""
        B, T, E = qkv_BTE.shape
        parts_3BNTH = qkv_BTE.view(B, T, 3, self.num_heads, E // (3 * self.num_heads))
        return parts_3BNTH.permute(2, 0, 3, 1, 4).unbind(0)


class CausalSelfAttention(nn.Module):
    """A decoder's self-attention, with one fused projection to queries, keys and values."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int,
        head_size: int,
        bias: bool,
        dropout: float,
        qkv_bias: bool = False,
        scale: float | None = None,
    ) -> None:
        """bias: of both projections. qkv_bias: of queries, keys and values alone. scale: of the
        scores, in the place of 1 / √d_k."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.dropout, self.scale = dropout, scale
        heads = num_heads + 2 * num_kv_heads
        self.query_key_value = nn.Linear(width, heads * head_size, bias=bias or qkv_bias)
        sizes = [n * head_size for n in (num_heads, num_kv_heads, num_kv_heads)]
        self.fused_rows = {"query_key_value": sizes}
        self.output = nn.Linear(num_heads * head_size, width, bias=bias)

    def apply_positions(
        self, q_BNTH: Tensor, k_BKTH: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys that know their positions; here they are in the embeddings already."""
        return q_BNTH, k_BKTH

    def split_heads(self, heads_BMTH: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys that know their positions, and values, of what the projection gives."""
        N, K = self.num_heads, self.num_kv_heads
        q_BNTH, k_BKTH, v_BKTH = heads_BMTH.split((N, K, K), dim=1)
        return (*self.apply_positions(q_BNTH, k_BKTH, context), v_BKTH)

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        B, T, _ = x_BTD.shape
        heads_BMTH = self.query_key_value(x_BTD).view(B, T, -1, self.head_size).transpose(1, 2)
        q_BNTH, k_BKSH, v_BKSH = self.split_heads(heads_BMTH, context)
        if context.virtual is not None:
            k_BKSH, v_BKSH = context.virtual.keys_values(layer, k_BKSH, v_BKSH)
        if context.sequences is not None:
            mixed_BNTH = context.sequences.attend(layer, q_BNTH, k_BKSH, v_BKSH, self.scale)
            return self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, -1))
        if context.cache is not None:
            q_BNTH, k_BKSH, v_BKSH = context.cache.extend(layer, q_BNTH, k_BKSH, v_BKSH)
        mixed_BNTH = attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            mask=context.mask,
            causal=context.causal,
            packed=context.packed,
            dropout=self.dropout if self.training else 0.0,
            bias=context.bias,
            scale=self.scale,
        )
        return self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, -1))
