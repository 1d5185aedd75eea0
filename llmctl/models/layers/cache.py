"""Keys and values of the tokens that a decoder has read, allocated once.

Rows may start at different slots: shorter prompts of a batch are padded on the left, so that all
end at the same slot and one product serves every row.

Rows that go on from one text, as the beams of a search do, are a *beam group*. What its rows read
at a slot lies side by side and stays there: each attends to all of it, under a mask that leaves it
its own ancestors. When such rows change places, only the mask does.

L layers, B rows, F beam groups of E rows each (B = F · E), K key/value heads, S slots, T new
tokens, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from llmctl.models.layers.attention import additive_mask

SHORT_PAST = 16
"""Slots up to which rows that go on from one text become a beam group: a longer past would lie
there once and be looked through for each of them."""


@dataclass
class KeyValueCache:
    """The cache of all layers. ``length`` slots are filled."""

    keys_LFKSEH: Tensor
    values_LFKSEH: Tensor
    starts_B: Tensor | None = None
    """The first slot of each row; None where all start at slot 0."""
    length: int = field(default=0)
    _ancestor_mask_BSE: Tensor | None = None
    """Additive, in beam groups of several: 0 where what a row of the group read is this row's past,
    −∞ elsewhere."""
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
        shape = (num_layers, rows, num_heads, capacity, 1, head_size)
        return cls(like.new_empty(shape), like.new_empty(shape), starts_B)

    @property
    def rows(self) -> int:
        return self.keys_LFKSEH.shape[1] * self.beams_per_group

    @property
    def beams_per_group(self) -> int:
        """Rows of a beam group."""
        return self.keys_LFKSEH.shape[4]

    @property
    def capacity(self) -> int:
        return self.keys_LFKSEH.shape[3]

    def extend(
        self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep a layer's new keys and values; returns the queries, and all keys and values up to
        them, as attention is to take them: (F, N, E · T, H) and twice (F, K, S · E, H). ``advance``
        follows once every layer has done so. Rows of beam groups take a token at a time."""
        tables = []
        for table_LFKSEH, new_BKTH in (
            (self.keys_LFKSEH, k_BKTH),
            (self.values_LFKSEH, v_BKTH),
        ):
            stop = self.length + new_BKTH.shape[2]
            new_FEKTH = new_BKTH.unflatten(0, (-1, self.beams_per_group))
            table_LFKSEH[layer, :, :, self.length : stop] = new_FEKTH.permute(0, 2, 3, 1, 4)
            tables.append(table_LFKSEH[layer, :, :, :stop].flatten(2, 3))
        if self.beams_per_group > 1:
            q_BNTH = q_BNTH.view(-1, self.beams_per_group, *q_BNTH.shape[1::2]).transpose(1, 2)
        return q_BNTH, tables[0], tables[1]

    def advance(self, tokens: int) -> None:
        """Count new tokens as read."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget what is beyond the first ``length`` slots."""
        self.length = min(self.length, length)

    def select(self, rows_R: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        rows = rows_R.tolist()
        if rows == list(range(self.rows)):
            return
        if self.starts_B is not None:
            self.starts_B = self.starts_B[rows_R]
        groups, beams = _beam_groups(rows, self.beams_per_group)
        if self.beams_per_group == 1 and (beams == 1 or self.length > SHORT_PAST):
            self._take(rows_R)
        elif self.beams_per_group == 1:
            self._fork(torch.tensor(groups, device=rows_R.device), beams)
        elif beams == self.beams_per_group:
            assert self._ancestor_mask_BSE is not None
            self._ancestor_mask_BSE = self._ancestor_mask_BSE[rows_R]
            if len(groups) < self.keys_LFKSEH.shape[1]:
                self._take(torch.tensor(groups, device=rows_R.device))
        else:
            self._split(rows_R)

    def _take(self, groups_F: Tensor) -> None:
        count, filled = len(groups_F), slice(self.length)
        places_F = torch.arange(count, device=groups_F.device)
        tables = [self.keys_LFKSEH, self.values_LFKSEH]
        if count <= tables[0].shape[1] and bool((groups_F.diff() > 0).all()):
            # Some go, and the others close up.
            moved = groups_F != places_F
            for table_LFKSEH in tables:
                closer = table_LFKSEH[:, groups_F[moved], :, filled]
                table_LFKSEH[:, places_F[moved], :, filled] = closer
            self.keys_LFKSEH, self.values_LFKSEH = (table[:, :count] for table in tables)
            return
        # From one table into another and back next time: one pass, over what is filled.
        taken = []
        for table_LFKSEH, spare in zip(tables, self._spare, strict=True):
            L, _, *rest = table_LFKSEH.shape
            if spare is None or spare.shape[1] < count:
                spare = table_LFKSEH.new_empty(L, count, *rest)
            chosen = spare[:, :count]
            source, target = (table[:, :, :, filled] for table in (table_LFKSEH, chosen))
            torch.index_select(source, 1, groups_F, out=target)
            taken.append(chosen)
        self.keys_LFKSEH, self.values_LFKSEH = taken
        self._spare = tables

    def _fork(self, groups_F: Tensor, beams: int) -> None:
        """Each of these rows becomes a beam group, whose rows share what is read so far."""
        L, _, K, S, _, H = self.keys_LFKSEH.shape
        F = len(groups_F)
        # On a processor keys lie by columns: see ``to_column_major``.
        keys = self.keys_LFKSEH
        keys_LFKSEH = (
            keys.new_empty(L, F, K, H, S, beams).permute(0, 1, 2, 4, 5, 3)
            if keys.device.type == "cpu"
            else keys.new_empty(L, F, K, S, beams, H)
        )
        values_LFKSEH = keys.new_empty(L, F, K, S, beams, H)
        shared = slice(self.length)
        for table_LFKSEH, before_LFKSEH in (
            (keys_LFKSEH, keys),
            (values_LFKSEH, self.values_LFKSEH),
        ):
            table_LFKSEH[:, :, :, shared, 0] = before_LFKSEH[:, groups_F, :, shared, 0]
            # What is masked is multiplied all the same.
            table_LFKSEH[:, :, :, shared, 1:] = 0.0
        self.keys_LFKSEH, self.values_LFKSEH = keys_LFKSEH, values_LFKSEH
        self._spare = (None, None)
        ancestor_mask_BSE = keys.new_full((F * beams, self.capacity, beams), -math.inf)
        ancestor_mask_BSE[:, : self.length, 0] = 0.0
        if self.starts_B is not None:
            slots_S = torch.arange(self.capacity, device=ancestor_mask_BSE.device)
            ancestor_mask_BSE.masked_fill_((slots_S < self.starts_B[:, None])[..., None], -math.inf)
        self._ancestor_mask_BSE = ancestor_mask_BSE

    def _split(self, rows_R: Tensor) -> None:
        """Each of these rows becomes a beam group of its own."""
        assert self._ancestor_mask_BSE is not None
        groups_R1 = (rows_R // self.beams_per_group)[:, None]
        slots_S = torch.arange(self.length, device=rows_R.device)
        writers_RS = self._ancestor_mask_BSE[rows_R, : self.length].argmax(-1)
        tables = []
        for table_LFKSEH in (self.keys_LFKSEH, self.values_LFKSEH):
            L, _, K, S, _, H = table_LFKSEH.shape
            own_RSLKH = table_LFKSEH.permute(1, 3, 4, 0, 2, 5)[groups_R1, slots_S, writers_RS]
            split = table_LFKSEH.new_empty(L, len(rows_R), K, S, 1, H)
            split[:, :, :, : self.length, 0] = own_RSLKH.permute(2, 0, 3, 1, 4)
            tables.append(split)
        self.keys_LFKSEH, self.values_LFKSEH = tables
        self._spare, self._ancestor_mask_BSE = (None, None), None

    def positions(self, tokens: int) -> Tensor:
        """Positions of the next tokens: (T,), or (B, T) where rows start at different slots."""
        slots_T = torch.arange(self.length, self.length + tokens, device=self.keys_LFKSEH.device)
        if self.starts_B is None:
            return slots_T
        return (slots_T[None] - self.starts_B[:, None]).clamp_(min=0)

    def mask(self, tokens: int) -> Tensor | None:
        """Additive: where the next tokens may attend, broadcastable to (F, N, E · T, S · E); None:
        to all of them."""
        if self._ancestor_mask_BSE is not None:
            own_EE = torch.eye(
                self.beams_per_group, dtype=torch.bool, device=self._ancestor_mask_BSE.device
            )
            place_FEE = self._ancestor_mask_BSE[:, self.length].unflatten(
                0, (-1, self.beams_per_group)
            )
            place_FEE.fill_(-math.inf).masked_fill_(own_EE, 0.0)
            ancestor_mask_BSE = self._ancestor_mask_BSE[:, : self.length + 1]
            return ancestor_mask_BSE.flatten(1).unflatten(0, (-1, 1, self.beams_per_group))
        if tokens == 1 and self.starts_B is None:
            return None
        device = self.keys_LFKSEH.device
        slots_S = torch.arange(self.length + tokens, device=device)
        allowed = slots_S <= slots_S[self.length :, None]
        if self.starts_B is not None:
            is_own_B1S = slots_S >= self.starts_B[:, None, None]
            # What is padding attends to itself: a row of -∞ would give NaN.
            allowed = (allowed & is_own_B1S) | (slots_S == slots_S[self.length :, None])
            allowed = allowed[:, None]
        return additive_mask(allowed)


def _beam_groups(rows: Sequence[int], beams_per_group: int) -> tuple[list[int], int]:
    """Which beam groups rows are of, in their order, and the rows of each; 1 where they aren't
    whole groups of as many, one after another."""
    runs = [
        (group, len(list(run))) for group, run in groupby(row // beams_per_group for row in rows)
    ]
    groups = [group for group, _ in runs]
    count = runs[0][1] if runs else 1
    alike = len(set(groups)) == len(runs) and all(length == count for _, length in runs)
    return (groups, count) if alike else (groups, 1)
