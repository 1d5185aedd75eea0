"""Where the tokens of one forward pass of a decoder stand, and what they may attend to.

B batch, T tokens, S tokens that may be attended to, D width, N heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmctl.models.layers.attention import additive_mask
from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.cross_attention import EncoderOutput
from llmctl.models.layers.kernels import cast_residual_stream
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.sequences import SequenceBatch
from llmctl.models.layers.virtual_tokens import Virtual


@dataclass(frozen=True)
class Context:
    """Where the tokens of one forward pass of a decoder stand, and what they may attend to."""

    position_ids: Tensor
    """(T,) or (B, T)."""
    mask: Tensor | None
    """Additive, broadcastable to (B, N, T, S); None: see ``causal``."""
    causal: bool
    """Without a mask: whether each token attends up to itself, or to all there is."""
    packed: PackedSequences | None
    """In a mask's place: those that attention stays inside of."""
    cache: KeyValueCache | None
    source: EncoderOutput | None = None
    """What is written from, where there is one."""
    cos: Tensor | None = None
    sin: Tensor | None = None
    """Sines of the rotary angles, broadcastable to (B, N, T, H / 2), as the cosines are."""
    sequences: SequenceBatch | None = None
    """In the place of cache and mask: the texts whose next tokens lie end to end in one row."""
    bias: Tensor | None = None
    """Added to the scores beside the mask, broadcastable to (B, N, T, S); see relative_bias.py."""
    virtual: Virtual | None = None
    """The tokens among these that stand before a text, and are of no word."""
    wide: Context | None = None
    """What layers see that attend to all tokens before, where the others have a window."""

    def with_virtual(self, virtual: Virtual) -> Context:
        """This one, with tokens that stand before texts."""
        wide = None if self.wide is None else replace(self.wide, virtual=virtual)
        return replace(self, virtual=virtual, wide=wide)

    def embedded(self, x_BTD: Tensor) -> Tensor:
        """The tokens' embeddings, with those of a soft prompt."""
        return x_BTD if self.virtual is None else self.virtual.embed(x_BTD)

    def add_initial_state(self, x_BTD: Tensor) -> Tensor:
        """The embeddings, with the source's state where a text begins."""
        if self.source is not None and (self.cache is None or not self.cache.length):
            x_BTD = self.source.add_initial_state(x_BTD, self.position_ids)
        return cast_residual_stream(x_BTD)


def make_context(
    input_ids_BT: Tensor,
    mask: Tensor | PackedSequences | None,
    position_ids_BT: Tensor | None,
    cache: KeyValueCache | SequenceBatch | None,
    source: EncoderOutput | None,
    dropout: float = 0.0,
    window: int = 0,
    bidirectional: bool = False,
) -> Context:
    """The context of a decoder's tokens: causal, behind those of the cache.

    mask: where attention is narrower than causal: the texts of packed rows, or bool, (B, T, T);
    without a cache only. dropout: of attention's weights. window: tokens that each may attend to,
    itself the last of them; 0: all before it. bidirectional: each sees those behind it too, as far
    as the mask lets it; without a cache or a window.
    """
    assert not bidirectional or (cache is None and not window)
    if isinstance(cache, SequenceBatch):
        return Context(cache.positions_T, None, False, None, None, source, sequences=cache)
    T = input_ids_BT.shape[1]
    past = 0 if cache is None else cache.length
    near_TS = _window(past, T, window, input_ids_BT.device) if 0 < window < past + T else None
    if cache is None:
        positions = (
            torch.arange(T, device=input_ids_BT.device)
            if position_ids_BT is None
            else position_ids_BT
        )
        packed = None
        if isinstance(mask, PackedSequences):
            varlen = near_TS is None and mask.supports_varlen(dropout)
            packed, mask = (
                (mask, None) if varlen else (None, mask.attention_mask(causal=not bidirectional))
            )
        if near_TS is not None:
            mask = near_TS[None] if mask is None else mask & near_TS
        added = None if mask is None else additive_mask(mask)[:, None]
        causal = added is None and not bidirectional
        return Context(positions, added, causal, packed, None, source)
    if cache.length == 0 and cache.starts_B is None and near_TS is None:
        return Context(cache.positions(T), None, T > 1, None, cache, source)  # the kernels know it
    added = cache.mask(T)
    if near_TS is not None:  # rows of a family lie side by side in each slot
        near = additive_mask(near_TS).repeat_interleave(cache.beams_per_group, -1)
        added = near if added is None else added + near
    return Context(cache.positions(T), added, False, None, cache, source)


def _window(past: int, tokens: int, window: int, device: torch.device) -> Tensor:
    """(T, S), bool: which of all tokens so far each of the last may attend to."""
    slots_S = torch.arange(past + tokens, device=device)
    behind_TS = slots_S[past:, None] - slots_S
    return (behind_TS >= 0) & (behind_TS < window)
