"""Tokens of several texts through one network, each behind what was read of its text before.

T tokens, R rows, D width, V vocabulary, L layers, K key/value heads, P slots before a text, H head
width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.native import FusedLlama
from llmctl.models.layers.sequences import KV_BLOCK, SequenceBatch, SequenceCache

FEWEST_ENGINE_ROWS = 2
"""Rows of a product at the least, where several may come at once."""


def whole_blocks(tokens: int) -> int:
    """The tokens of the blocks that so many tokens fill or begin."""
    return -(-tokens // KV_BLOCK) * KV_BLOCK


def bytes_of(decoder: CausalDecoder, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens."""
    body = decoder.model.body
    num_heads, head_size = body.config.kv_shape()
    numbers = 2 * body.config.num_layers * num_heads * head_size * tokens
    return numbers * body.like_states().element_size()


def new_cache(
    decoder: CausalDecoder, capacity: int, virtual: tuple[Tensor, Tensor] | None
) -> SequenceCache:
    """An empty row for a text's keys and values. virtual: those (L, K, P, H) of what stands before
    every text."""
    body = decoder.model.body
    num_heads, head_size = body.config.kv_shape()
    return SequenceCache.allocate(
        num_layers=body.config.num_layers,
        num_heads=num_heads,
        head_size=head_size,
        capacity=capacity,
        like=body.like_states(),
        virtual=virtual,
    )


class BatchReader:
    """What reads the next tokens of texts with one network."""

    def __init__(self, decoder: CausalDecoder, most_rows: int) -> None:
        """most_rows: how many may come at once; a single row is multiplied by other kernels, unless
        all layers are ours."""
        self._decoder = decoder
        body = decoder.model.body
        self.fused = FusedLlama(body) if FusedLlama.suits(body) else None
        """What reads all layers at once, where they are ours."""
        alone = 1 if self.fused else FEWEST_ENGINE_ROWS  # whose rows are never another's
        self._fewest_rows = min(alone, most_rows)

    def hidden_states(
        self,
        parts: Sequence[tuple[SequenceCache, int]],
        ids: list[int],
        singly: Collection[int] = (),
    ) -> Tensor:
        """Hidden states (T, D) of the next tokens of texts, and of what fills them up to the fewest
        rows. parts: each text's row and how many of ``ids`` are its. singly: see
        ``SequenceBatch``."""
        if self.fused is not None:
            return self.fused.read(ids, parts)
        padding = max(0, self._fewest_rows - len(ids))
        body = self._decoder.model.body
        config = body.config
        batch = SequenceBatch(
            parts,
            window=config.window(),
            padding=padding,
            wide_layers=config.wide_layers(),
            singly=singly,
        )
        ids_1T = torch.tensor([ids + [0] * padding], device=self._decoder.device)
        hidden_1TD: Tensor = body(ids_1T, cache=batch)
        return hidden_1TD[0]

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits (R, V), by a product of the fewest rows at the least."""
        rows = len(hidden_RD)
        if rows < self._fewest_rows:
            padding_RD = hidden_RD.new_zeros(self._fewest_rows - rows, hidden_RD.shape[1])
            hidden_RD = torch.cat((hidden_RD, padding_RD))
        return self._decoder.logits(hidden_RD)[:rows]
