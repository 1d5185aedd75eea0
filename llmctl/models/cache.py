"""Keys and values of the tokens that a decoder has read, allocated once.

Rows may start at different slots: shorter prompts of a batch are padded on the left, so that all
end at the same slot and one product serves every row.

L layers, B rows, K key/value heads, S slots, T new tokens, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KeyValueCache:
    """The cache of all layers. ``length`` slots are filled."""

    keys_LBKSH: Tensor
    values_LBKSH: Tensor
    starts_B: Tensor | None = None
    """The first slot of each row; None where all start at slot 0."""
    length: int = field(default=0)
    _spare: Sequence[Tensor | None] = (None, None)
    """Tables that rows come into when they are chosen."""

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        rows: int,
        num_heads: int,
        capacity: int,
        head_size: int,
        like: Tensor,
        starts_B: Tensor | None = None,
    ) -> KeyValueCache:
        """An empty cache of ``capacity`` slots, in the type and on the device of ``like``."""
        shape = (num_layers, rows, num_heads, capacity, head_size)
        return cls(like.new_empty(shape), like.new_empty(shape), starts_B)

    @property
    def capacity(self) -> int:
        return self.keys_LBKSH.shape[3]

    def extend(self, layer: int, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values; returns all up to them. ``advance`` follows once
        every layer has done so."""
        stop = self.length + k_BKTH.shape[2]
        self.keys_LBKSH[layer, :, :, self.length : stop] = k_BKTH
        self.values_LBKSH[layer, :, :, self.length : stop] = v_BKTH
        return self.keys_LBKSH[layer, :, :, :stop], self.values_LBKSH[layer, :, :, :stop]

    def advance(self, tokens: int) -> None:
        """Count new tokens as read."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget what is beyond the first ``length`` slots."""
        self.length = min(self.length, length)

    def select(self, rows_R: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        count = self.keys_LBKSH.shape[1]
        places_R = torch.arange(len(rows_R), device=rows_R.device)
        if len(rows_R) == count and bool((rows_R == places_R).all()):
            return
        tables = [self.keys_LBKSH, self.values_LBKSH]
        self.keys_LBKSH, self.values_LBKSH = (
            self._selected(table, spare, rows_R)
            for table, spare in zip(tables, self._spare, strict=True)
        )
        self._spare = tables
        if self.starts_B is not None:
            self.starts_B = self.starts_B[rows_R]

    def _selected(self, table_LBKSH: Tensor, spare: Tensor | None, rows_R: Tensor) -> Tensor:
        # From one table into another and back next time: one pass, over what is filled.
        L, _, K, S, H = table_LBKSH.shape
        R = len(rows_R)
        if spare is None or spare.shape[1] < R:
            spare = table_LBKSH.new_empty(L, R, K, S, H)
        taken = spare[:, :R]
        filled = slice(self.length)
        torch.index_select(table_LBKSH[:, :, :, filled], 1, rows_R, out=taken[:, :, :, filled])
        return taken

    def positions(self, tokens: int) -> Tensor:
        """Positions of the next tokens: (T,), or (B, T) where rows start at different slots."""
        slots_T = torch.arange(self.length, self.length + tokens, device=self.keys_LBKSH.device)
        if self.starts_B is None:
            return slots_T
        return (slots_T[None] - self.starts_B[:, None]).clamp_(min=0)

    def mask(self, tokens: int) -> Tensor | None:
        """True where the next tokens may attend, (T, S) or (B, T, S); None: to all of them."""
        if tokens == 1 and self.starts_B is None:
            return None
        device = self.keys_LBKSH.device
        slots_S = torch.arange(self.length + tokens, device=device)
        mask = slots_S <= slots_S[self.length :, None]
        if self.starts_B is None:
            return mask
        begun_B1S = slots_S >= self.starts_B[:, None, None]
        # What is padding attends to itself: a row of -∞ would give NaN.
        return (mask & begun_B1S) | (slots_S == slots_S[self.length :, None])
