"""Keys and values of the tokens that a decoder has read, allocated once.

Rows may start at different slots: shorter prompts of a batch are padded on the left, so that all
end at the same slot and one product serves every row.

L layers, B rows, K key/value heads, S slots, T new tokens, H head width.
"""

from __future__ import annotations

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
        moved_R = (rows_R != places_R).nonzero()[:, 0]
        if len(rows_R) == count and not len(moved_R):
            return
        self.keys_LBKSH = self._selected(self.keys_LBKSH, rows_R, moved_R)
        self.values_LBKSH = self._selected(self.values_LBKSH, rows_R, moved_R)
        if self.starts_B is not None:
            self.starts_B = self.starts_B[rows_R]

    def _selected(self, table_LBKSH: Tensor, rows_R: Tensor, moved_R: Tensor) -> Tensor:
        # Only what is filled and comes to another place is worth the copy, and only more rows need
        # another table.
        L, B, K, S, H = table_LBKSH.shape
        if len(rows_R) > B:
            filled = table_LBKSH[:, rows_R, :, : self.length]
            table_LBKSH = table_LBKSH.new_empty(L, len(rows_R), K, S, H)
            table_LBKSH[:, :, :, : self.length] = filled
            return table_LBKSH
        moved = table_LBKSH[:, rows_R[moved_R], :, : self.length]
        table_LBKSH[:, moved_R, :, : self.length] = moved
        return table_LBKSH[:, : len(rows_R)]

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
