"""The parts that Transformers share: attention, feed-forward network, and their formulas.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V                   (Vaswani et al. 2017, eq. 1)
    FFN(x)             = activation(x W₁ + b₁) W₂ + b₂            (ibid., eq. 2)

B batch, T tokens, M = B · T, S tokens that may be attended to, D width, N heads, K key/value heads,
H head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.elementwise import additive_mask, rms_norm, squared_relu

if TYPE_CHECKING:
    from llmctl.models.layers.cross_attention import Source

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": squared_relu,
}
"""GELU in its exact form (Hendrycks and Gimpel 2016), as BERT was published, and in GPT-2's
approximation; ReLU as in Vaswani et al. 2017, and squared (So et al. 2021)."""


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
        self, x_BTD: Tensor, mask: Tensor | None = None, texts: Texts | None = None
    ) -> Tensor:
        """mask: added to the scores, broadcastable to (B, N, T, T); see ``additive_mask``. texts:
        those of packed rows, in a mask's place, where ``Texts.kernel_for`` says so."""
        B, T, D = x_BTD.shape
        qkv_3BNTH = (
            self.query_key_value(x_BTD)
            .view(B, T, 3, self.num_heads, D // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        dropout = self.dropout if self.training else 0.0
        mixed_BNTH = attention(*qkv_3BNTH.unbind(0), mask=mask, texts=texts, dropout=dropout)
        return self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, D))


SHORT = 256
"""Tokens up to which the formula as written beats PyTorch's fused bf16 kernel on a processor,
whose backward pass is slow: four times at 128, once at 512 (measured on a Xeon with AMX)."""


def attention(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    texts: Texts | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(Q Kᵀ / √d_k + mask) V, (B, N, T, H).

    mask: see ``additive_mask``. causal: token t attends up to itself, where T = S and there is no
    mask. texts: attention stays inside each, without a mask or dropout; see ``Texts.kernel_for``.
    With fewer key/value heads than heads, consecutive heads share one (Ainslie et al. 2023).
    """
    groups = q_BNTH.shape[1] // k_BKSH.shape[1]
    if texts is not None:
        return _attention_by_text(q_BNTH, k_BKSH, v_BKSH, texts, causal)
    if mask is None and not dropout and _suits_cudnn(q_BNTH):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(
                q_BNTH, k_BKSH, v_BKSH, is_causal=causal, enable_gqa=groups > 1
            )
    if not _better_written_out(q_BNTH, k_BKSH):
        return F.scaled_dot_product_attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal,
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
            nothing, q_MGH, k_BKSH.transpose(-1, -2).flatten(0, 1), beta=0, alpha=H**-0.5
        )
        scores_BNTS = scores_MGS.view(B, N, T, -1)
        if mask is not None:
            scores_BNTS = scores_BNTS + mask.to(scores_BNTS.dtype)
        weights_BNTS = F.dropout(scores_BNTS.softmax(-1), dropout, training=dropout > 0)
        weights_MGS = weights_BNTS.view(scores_MGS.shape)
        return torch.bmm(weights_MGS, v_BKSH.flatten(0, 1)).view(B, N, T, H)


def _better_written_out(q_BNTH: Tensor, k_BKSH: Tensor) -> bool:
    """Whether the formula's own products are faster than a fused kernel."""
    if q_BNTH.device.type != "cpu":
        return False
    short = q_BNTH.dtype == torch.bfloat16 and k_BKSH.shape[2] <= SHORT
    return short or k_BKSH.stride(-1) != 1


def by_columns(k_BKSH: Tensor) -> Tensor:
    """Keys that many queries will come to, laid out for the product with them on a processor: with
    few queries at a time it takes half the time of the fused kernel."""
    if k_BKSH.device.type != "cpu":
        return k_BKSH
    return k_BKSH.transpose(-1, -2).contiguous().transpose(-1, -2)


_capability = (0, 0)


def use_kernels_of(device: torch.device) -> None:
    """Let training take the kernels that a GPU has, by its compute capability. To be called before
    a model is compiled, as that can't be asked for in between."""
    global _capability
    if device.type == "cuda":
        _capability = torch.cuda.get_device_capability(device)


def _suits_cudnn(q_BNTH: Tensor) -> bool:
    """Whether cuDNN's kernel does it: on a Hopper GPU it takes two thirds of the time of the one
    that PyTorch chooses for training."""
    return (
        q_BNTH.device.type == "cuda"
        and q_BNTH.dtype in (torch.bfloat16, torch.float16)
        and q_BNTH.requires_grad
        and q_BNTH.shape[-1] % 8 == 0
        and q_BNTH.shape[-1] <= 128
        and _capability[0] == 9
    )


def _attention_by_text(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, texts: Texts, causal: bool
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    B, N, T, _ = q_BNTH.shape
    q_MNH, k_MNH, v_MNH = (
        part.repeat_interleave(N // part.shape[1], 1).transpose(1, 2).flatten(0, 1)
        for part in (q_BNTH, k_BKTH, v_BKTH)
    )
    window = (-1, 0) if causal else (-1, -1)
    bounds_S = texts.bounds_S
    mixed_MNH = varlen_attn(q_MNH, k_MNH, v_MNH, bounds_S, bounds_S, T, T, window_size=window)
    assert isinstance(mixed_MNH, Tensor)  # nothing else was asked for
    return mixed_MNH.unflatten(0, (B, T)).transpose(1, 2)


@dataclass(frozen=True)
class Texts:
    """Rows that hold several texts end to end, as packing makes them: attention is to stay inside
    each. What is behind a row's last text is one of its own."""

    number_BT: Tensor
    """The same number where tokens of a row belong together."""
    bounds_S: Tensor
    """int32: the flat places (b · T + t) where each begins, ascending, and B · T; that is repeated
    up to a multiple of ``BOUNDS_STEP``, so that few shapes are met."""

    @classmethod
    def of(cls, number_BT: NDArray[np.int64]) -> Texts:
        """From the numbers alone."""
        begins = np.ones(number_BT.shape, dtype=bool)
        begins[:, 1:] = number_BT[:, 1:] != number_BT[:, :-1]
        places = np.flatnonzero(begins)
        bounds = np.full(-(-(len(places) + 1) // BOUNDS_STEP) * BOUNDS_STEP, number_BT.size)
        bounds[: len(places)] = places
        return cls(
            torch.from_numpy(number_BT.astype(np.int32)), torch.from_numpy(bounds.astype(np.int32))
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Texts:
        """The same on another device."""
        return Texts(
            *(
                part.to(device, non_blocking=non_blocking)
                for part in (self.number_BT, self.bounds_S)
            )
        )

    def pin_memory(self) -> Texts:
        """The same in memory that an accelerator reads while others compute."""
        return Texts(self.number_BT.pin_memory(), self.bounds_S.pin_memory())

    def rows(self, begin: int, stop: int) -> Texts:
        """Those of some of the rows."""
        return Texts.of(self.number_BT[begin:stop].numpy())

    def allowed(self, *, causal: bool = False) -> Tensor:
        """(B, T, T), bool: whether token i may attend to token j."""
        same_BTT = self.number_BT[:, :, None] == self.number_BT[:, None, :]
        return same_BTT.tril() if causal else same_BTT

    def kernel_for(self, dropout: float) -> bool:
        """Whether a kernel can go by the bounds here: a flash one on a GPU, in bf16, does only the
        work inside each text, where a mask costs the whole square."""
        device = self.number_BT.device.type
        low = torch.is_autocast_enabled(device)
        return device == "cuda" and low and not dropout and _capability >= (8, 0)


BOUNDS_STEP = 64


def residual(x_BTD: Tensor) -> Tensor:
    """What blocks add to, in the type of the products on an accelerator: a block there takes as
    long as its reading and writing between the products, and this is half of that."""
    device = x_BTD.device.type
    if device == "cuda" and torch.is_autocast_enabled(device):
        return x_BTD.to(torch.get_autocast_dtype(device))
    return x_BTD


@dataclass(frozen=True)
class Context:
    """Where the tokens of one forward pass of a decoder stand, and what they may attend to."""

    position_ids: Tensor
    """(T,) or (B, T)."""
    mask: Tensor | None
    """Additive, broadcastable to (B, N, T, S); None: see ``causal``."""
    causal: bool
    """Without a mask: whether each token attends up to itself, or to all there is."""
    texts: Texts | None
    """In a mask's place: those that attention stays inside of."""
    cache: KeyValueCache | None
    source: Source | None = None
    """What is written from, where there is one."""
    cos: Tensor | None = None
    sin: Tensor | None = None
    """Of the rotary angles, broadcastable to (B, N, T, H / 2)."""

    def started(self, x_BTD: Tensor) -> Tensor:
        """The embeddings, with the source's state where a text begins."""
        if self.source is not None and (self.cache is None or not self.cache.length):
            x_BTD = self.source.started(x_BTD, self.position_ids)
        return residual(x_BTD)


def context(
    input_ids_BT: Tensor,
    mask: Tensor | Texts | None,
    position_ids_BT: Tensor | None,
    cache: KeyValueCache | None,
    source: Source | None,
    dropout: float = 0.0,
    window: int = 0,
) -> Context:
    """The context of a decoder's tokens: causal, behind those of the cache.

    mask: where attention is narrower than causal: the texts of packed rows, or bool, (B, T, T);
    without a cache only. dropout: of attention's weights. window: tokens that each may attend to,
    itself the last of them; 0: all before it.
    """
    T = input_ids_BT.shape[1]
    past = 0 if cache is None else cache.length
    near_TS = _window(past, T, window, input_ids_BT.device) if 0 < window < past + T else None
    if cache is None:
        positions = (
            torch.arange(T, device=input_ids_BT.device)
            if position_ids_BT is None
            else position_ids_BT
        )
        texts = None
        if isinstance(mask, Texts):
            by_text = near_TS is None and mask.kernel_for(dropout)
            texts, mask = (mask, None) if by_text else (None, mask.allowed(causal=True))
        if near_TS is not None:
            mask = near_TS[None] if mask is None else mask & near_TS
        added = None if mask is None else additive_mask(mask)[:, None]
        return Context(positions, added, added is None, texts, None, source)
    if cache.length == 0 and cache.starts_B is None and near_TS is None:
        return Context(cache.positions(T), None, T > 1, None, cache, source)  # the kernels know it
    added = cache.mask(T)
    if near_TS is not None:  # rows of a family lie side by side in each slot
        near = additive_mask(near_TS).repeat_interleave(cache.each, -1)
        added = near if added is None else added + near
    return Context(cache.positions(T), added, False, None, cache, source)


def _window(past: int, tokens: int, window: int, device: torch.device) -> Tensor:
    """(T, S), bool: which of all tokens so far each of the last may attend to."""
    slots_S = torch.arange(past + tokens, device=device)
    behind_TS = slots_S[past:, None] - slots_S
    return (behind_TS >= 0) & (behind_TS < window)


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
    ) -> None:
        """bias: of both projections. qkv_bias: of queries, keys and values alone."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.dropout = dropout
        heads = num_heads + 2 * num_kv_heads
        self.query_key_value = nn.Linear(width, heads * head_size, bias=bias or qkv_bias)
        sizes = [n * head_size for n in (num_heads, num_kv_heads, num_kv_heads)]
        self.fused_rows = {"query_key_value": sizes}
        self.output = nn.Linear(num_heads * head_size, width, bias=bias)

    def place(self, q_BNTH: Tensor, k_BKTH: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Queries and keys that know their positions; here they are in the embeddings already."""
        return q_BNTH, k_BKTH

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        B, T, _ = x_BTD.shape
        heads_BMTH = self.query_key_value(x_BTD).view(B, T, -1, self.head_size).transpose(1, 2)
        N, K = self.num_heads, self.num_kv_heads
        q_BNTH, k_BKSH, v_BKSH = heads_BMTH.split((N, K, K), dim=1)
        q_BNTH, k_BKSH = self.place(q_BNTH, k_BKSH, context)
        if context.cache is not None:
            q_BNTH, k_BKSH, v_BKSH = context.cache.extend(layer, q_BNTH, k_BKSH, v_BKSH)
        mixed_BNTH = attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            mask=context.mask,
            causal=context.causal,
            texts=context.texts,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, -1))


def rotary_table(positions: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles p · θ⁻²ⁱᐟᴴ, each (positions, H / 2).

    The angles are rounded to fp32 as everywhere else, so that models of others behave as theirs.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    # In NumPy: PyTorch's first sine in a process, over two threads, has other bits at times.
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    return torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))


class RMSNorm(nn.Module):
    """RMSNorm with a gain for each entry."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.epsilon) * self.weight


class FeedForward(nn.Module):
    """Two linear layers with an activation between, applied to each token alone."""

    def __init__(
        self, width: int, inner_width: int, activation: Activation, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.expand = nn.Linear(width, inner_width, bias=bias)
        self.contract = nn.Linear(inner_width, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.contract(self.activation(self.expand(x_BTD)))


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights and zero biases, as BERT and GPT-2 start; to be used with ``apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        with torch.no_grad():
            module.weight.normal_(0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
