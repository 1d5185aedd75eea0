"""Keys and values of texts that are each at a place of their own, and attention among them.

The next tokens of all texts lie end to end in one row, so that one product of each layer serves
them all, however many each text brings: one where it is being written, many where it is read. Only
attention is computed text by text, over that text's keys and values where they lie.

A text is read in pieces that end at multiples of ``KV_BLOCK`` whatever else is read, so what comes
out for it doesn't depend on how its reading was divided.

L layers, N heads, K key/value heads, S slots, T tokens, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.models.layers.attention import additive_mask, attention

KV_BLOCK = 32
"""Tokens of a text whose attention is computed together, and that are kept and shared together."""


@dataclass
class SequenceCache:
    """Keys and values of one text, in all layers. ``length`` slots are filled."""

    keys_LKSH: Tensor
    values_LKSH: Tensor
    length: int = 0

    @classmethod
    def allocate(
        cls, *, num_layers: int, num_heads: int, head_size: int, capacity: int, like: Tensor
    ) -> SequenceCache:
        """An empty cache of ``capacity`` slots, in the type and on the device of ``like``."""
        shape = (num_layers, num_heads, capacity, head_size)
        return cls(like.new_empty(shape), like.new_empty(shape))

    @property
    def capacity(self) -> int:
        return self.keys_LKSH.shape[2]

    def grow(self, capacity: int) -> None:
        """Make room for so many slots."""
        tables = []
        for table_LKSH in (self.keys_LKSH, self.values_LKSH):
            L, K, _, H = table_LKSH.shape
            larger = table_LKSH.new_empty(L, K, capacity, H)
            larger[:, :, : self.length] = table_LKSH[:, :, : self.length]
            tables.append(larger)
        self.keys_LKSH, self.values_LKSH = tables

    def slots(self, begin: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copies of some slots' keys and values, (L, K, S, H) each."""
        return self.keys_LKSH[:, :, begin:stop].clone(), self.values_LKSH[:, :, begin:stop].clone()

    def append(self, keys_LKSH: Tensor, values_LKSH: Tensor) -> None:
        """Add keys and values that were computed before."""
        stop = self.length + keys_LKSH.shape[2]
        self.keys_LKSH[:, :, self.length : stop] = keys_LKSH
        self.values_LKSH[:, :, self.length : stop] = values_LKSH
        self.length = stop


class _Piece(NamedTuple):
    """New tokens of one text that attend together."""

    cache: SequenceCache
    begin: int
    """Their place in the row."""
    first: int
    """Their place in the text."""
    tokens: int
    low: int
    """The first slot that any of them attends to."""
    mask_TS: Tensor | None
    """Additive; None: a single token attends to all slots from ``low`` on."""


class SequenceBatch:
    """The next tokens of several texts, end to end in one row: what a decoder takes for a cache."""

    def __init__(
        self, parts: Sequence[tuple[SequenceCache, int]], *, window: int = 0, padding: int = 0
    ) -> None:
        """parts: a text's cache, with room, and its number of new tokens. window: tokens that each
        may attend to, itself the last of them; 0: all before it. padding: tokens behind all parts,
        whose results are of no use."""
        self._parts = list(parts)
        device = parts[0][0].keys_LKSH.device
        places: list[int] = []
        self._pieces: list[_Piece] = []
        for cache, tokens in parts:
            begin, stop = cache.length, cache.length + tokens
            assert stop <= cache.capacity
            for first in _cuts(begin, stop):
                last = min(stop, (first // KV_BLOCK + 1) * KV_BLOCK)
                low = max(0, first + 1 - window) if window else 0
                mask_TS = _mask(first, last, low, window, device) if last - first > 1 else None
                self._pieces.append(
                    _Piece(cache, len(places) + first - begin, first, last - first, low, mask_TS)
                )
            places += range(begin, stop)
        self._filled = len(places)
        self.positions_T = torch.tensor([*places, *[0] * padding], device=device)
        """The position of each token in its text."""

    def attend(
        self, layer: int, q_1NTH: Tensor, k_1KTH: Tensor, v_1KTH: Tensor, scale: float | None
    ) -> Tensor:
        """Keep a layer's new keys and values, and let each text's tokens attend to their own,
        (1, N, T, H). ``advance`` follows once every layer has done so."""
        mixed_1NTH = torch.empty_like(q_1NTH)
        mixed_1NTH[:, :, self._filled :] = 0.0
        begin = 0
        for cache, tokens in self._parts:
            slots, new = slice(cache.length, cache.length + tokens), slice(begin, begin + tokens)
            cache.keys_LKSH[layer, :, slots] = k_1KTH[0, :, new]
            cache.values_LKSH[layer, :, slots] = v_1KTH[0, :, new]
            begin += tokens
        for cache, begin, first, tokens, low, mask_TS in self._pieces:
            new, seen = slice(begin, begin + tokens), slice(low, first + tokens)
            mixed_1NTH[:, :, new] = attention(
                q_1NTH[:, :, new],
                cache.keys_LKSH[None, layer, :, seen],
                cache.values_LKSH[None, layer, :, seen],
                mask=mask_TS,
                scale=scale,
            )
        return mixed_1NTH

    def advance(self, tokens: int) -> None:
        """Count the new tokens of each text as read; ``tokens`` is how many there are in all."""
        assert tokens == len(self.positions_T)
        for cache, new in self._parts:
            cache.length += new


def _cuts(begin: int, stop: int) -> list[int]:
    """Where the pieces of a text from ``begin`` to ``stop`` begin."""
    return [begin, *range((begin // KV_BLOCK + 1) * KV_BLOCK, stop, KV_BLOCK)]


def _mask(first: int, last: int, low: int, window: int, device: torch.device) -> Tensor:
    """Where the tokens from ``first`` to ``last`` may attend among those from ``low`` on."""
    behind_TS = torch.arange(first, last, device=device)[:, None] - torch.arange(
        low, last, device=device
    )
    allowed = behind_TS >= 0
    return additive_mask(allowed & (behind_TS < window) if window else allowed)
