"""Keys and values of texts that are each at a place of their own, and attention among them.

The next tokens of all texts lie end to end in one row, so that one product of each layer serves
them all, however many each text brings: one where it is being written, many where it is read. Only
attention is computed text by text, over that text's keys and values where they lie.

A text is read in pieces that end at multiples of ``KV_BLOCK`` whatever else is read, so what comes
out for it doesn't depend on how its reading was divided.

L layers, N heads, K key/value heads, S slots, P slots before a text, T tokens, H head width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    before: int = 0
    """Slots of virtual tokens, which stand before the text's own and aren't counted as these."""

    def __post_init__(self) -> None:
        self.layers = list(zip(self.keys_LKSH, self.values_LKSH, strict=True))
        """The tables of each layer, (K, S, H)."""

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        num_heads: int,
        head_size: int,
        capacity: int,
        like: Tensor,
        virtual: tuple[Tensor, Tensor] | None = None,
    ) -> SequenceCache:
        """An empty cache of ``capacity`` slots, in the type and on the device of ``like``. virtual:
        keys and values (L, K, P, H) of what stands before the text."""
        before = 0 if virtual is None else virtual[0].shape[2]
        shape = (num_layers, num_heads, before + capacity, head_size)
        tables = like.new_empty(shape), like.new_empty(shape)
        if virtual is not None:
            for table_LKSH, own_LKPH in zip(tables, virtual, strict=True):
                table_LKSH[:, :, :before] = own_LKPH
        return cls(*tables, before=before)

    @property
    def capacity(self) -> int:
        return self.keys_LKSH.shape[2] - self.before

    def grow(self, capacity: int) -> None:
        """Make room for so many slots."""
        tables = []
        filled = self.before + self.length
        for table_LKSH in (self.keys_LKSH, self.values_LKSH):
            L, K, _, H = table_LKSH.shape
            larger = table_LKSH.new_empty(L, K, self.before + capacity, H)
            larger[:, :, :filled] = table_LKSH[:, :, :filled]
            tables.append(larger)
        self.keys_LKSH, self.values_LKSH = tables
        self.__post_init__()

    def slots(self, begin: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copies of some slots' keys and values, (L, K, S, H) each."""
        own = slice(self.before + begin, self.before + stop)
        return self.keys_LKSH[:, :, own].clone(), self.values_LKSH[:, :, own].clone()

    def append(self, keys_LKSH: Tensor, values_LKSH: Tensor) -> None:
        """Add keys and values that were computed before."""
        stop = self.length + keys_LKSH.shape[2]
        new = slice(self.before + self.length, self.before + stop)
        self.keys_LKSH[:, :, new] = keys_LKSH
        self.values_LKSH[:, :, new] = values_LKSH
        self.length = stop

    def truncate(self, length: int) -> None:
        """Forget what is beyond the first ``length`` tokens."""
        self.length = min(self.length, length)


class _Piece(NamedTuple):
    """New tokens of one text that attend together."""

    cache: SequenceCache
    begin: int
    """Their place in the row."""
    tokens: int
    low: int
    """The first slot that any of them attends to."""
    seen: int
    """The slots from ``low`` to the last of theirs."""
    mask_TS: Tensor | None
    """Additive; None: a single token attends to all slots from ``low`` on."""


class SequenceBatch:
    """The next tokens of several texts, end to end in one row: what a decoder takes for a cache."""

    def __init__(
        self,
        parts: Sequence[tuple[SequenceCache, int]],
        *,
        window: int = 0,
        padding: int = 0,
        wide_layers: Collection[int] = (),
        singly: Collection[int] = (),
    ) -> None:
        """parts: a text's cache, with room, and its number of new tokens. window: tokens that each
        may attend to, itself the last of them; 0: all before it. padding: tokens behind all parts,
        whose results are of no use. wide_layers: those in which a token attends to all before it,
        whatever the window. singly: numbers of parts whose tokens attend one by one, to the last
        bit as if each came alone."""
        self._parts = list(parts)
        device = parts[0][0].keys_LKSH.device
        places: list[int] = []
        self._wide_layers = wide_layers
        self._pieces: list[_Piece] = []
        self._wide_pieces: list[_Piece] = []
        """In ``wide_layers``."""
        for number, (cache, tokens) in enumerate(parts):
            begin, stop = cache.length, cache.length + tokens
            assert stop <= cache.capacity
            size = 1 if number in singly else KV_BLOCK
            for first in _cuts(begin, stop, size):
                last = min(stop, (first // size + 1) * size)
                row, new = len(places) + first - begin, last - first
                first, last = cache.before + first, cache.before + last  # as slots
                low = max(0, first + 1 - window) if window else 0
                mask_TS = _mask(first, last, low, window, device) if new > 1 else None
                self._pieces.append(_Piece(cache, row, new, low, last - low, mask_TS))
                if wide_layers:
                    mask_TS = _mask(first, last, 0, 0, device) if new > 1 else None
                    self._wide_pieces.append(_Piece(cache, row, new, 0, last, mask_TS))
            places += range(cache.before + begin, cache.before + stop)
        self._padding = padding
        self.positions_T = torch.tensor([*places, *[0] * padding], device=device)
        """The position of each token in its text."""

    def attend(
        self, layer: int, q_1NTH: Tensor, k_1KTH: Tensor, v_1KTH: Tensor, scale: float | None
    ) -> Tensor:
        """Keep a layer's new keys and values, and let each text's tokens attend to their own,
        (1, N, T, H). ``advance`` follows once every layer has done so."""
        k_KTH, v_KTH, begin = k_1KTH[0], v_1KTH[0], 0
        for cache, tokens in self._parts:
            keys_KSH, values_KSH = cache.layers[layer]
            slot = cache.before + cache.length
            keys_KSH.narrow(1, slot, tokens).copy_(k_KTH.narrow(1, begin, tokens))
            values_KSH.narrow(1, slot, tokens).copy_(v_KTH.narrow(1, begin, tokens))
            begin += tokens
        mixed = []
        pieces = self._wide_pieces if layer in self._wide_layers else self._pieces
        for cache, begin, tokens, low, seen, mask_TS in pieces:
            keys_KSH, values_KSH = cache.layers[layer]
            mixed.append(
                attention(
                    q_1NTH.narrow(2, begin, tokens),
                    keys_KSH.narrow(1, low, seen)[None],
                    values_KSH.narrow(1, low, seen)[None],
                    mask=mask_TS,
                    scale=scale,
                )
            )
        if self._padding:
            mixed.append(torch.zeros_like(q_1NTH[:, :, -self._padding :]))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2)

    def advance(self, tokens: int) -> None:
        """Count the new tokens of each text as read; ``tokens`` is how many there are in all."""
        assert tokens == len(self.positions_T)
        for cache, new in self._parts:
            cache.length += new


def _cuts(begin: int, stop: int, size: int) -> list[int]:
    """Where the pieces of a text from ``begin`` to ``stop`` begin."""
    return [begin, *range((begin // size + 1) * size, stop, size)]


def _mask(first: int, last: int, low: int, window: int, device: torch.device) -> Tensor:
    """Where the tokens from ``first`` to ``last`` may attend among those from ``low`` on."""
    behind_TS = torch.arange(first, last, device=device)[:, None] - torch.arange(
        low, last, device=device
    )
    allowed = behind_TS >= 0
    return additive_mask(allowed & (behind_TS < window) if window else allowed)
