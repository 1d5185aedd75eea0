"""Attention in a window around each token, at the cost of the window (Beltagy et al. 2020, §3.1).

Token i attends to the tokens j with |i − j| ≤ r. The row is cut into blocks of r tokens or more,
and the queries of a block come to the keys of their own block and of the two beside it: what is
computed grows with the row's length, where all pairs under a mask grow with its square.

    block        0     1     2     3     4
    queries                  ■
    keys               ■     ■     ■

B batch, T tokens, C tokens of a block, P blocks of a row, D width, N heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.models.layers.attention import additive_mask, attention
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.rotary import rotate_fused
from llmctl.models.layers.virtual_tokens import Virtual

SMALLEST_BLOCK = 32
"""Tokens of a block at the least: a product of fewer rows takes as long as one of so many."""
DENSE_BLOCKS = 4
"""Blocks of a row up to which all pairs are as cheap: each comes to the keys of three anyhow, which
have to be laid out (measured at 256 and 512 tokens)."""


@dataclass(frozen=True)
class LocalWindow:
    """What the tokens of some rows may attend to in a window."""

    mask: Tensor
    """Additive: (B or 1, 1, T, T) for all pairs, or (B · P, 1, C, 3 C) for those of blocks."""
    block: int
    """Tokens of a block; 0: all pairs, for rows that blocks would not make cheaper."""

    @classmethod
    def of(
        cls,
        sequence_ids_BT: Tensor | None,
        shape: tuple[int, int],
        radius: int,
        device: torch.device,
    ) -> LocalWindow:
        """The window of rows (B, T): ``radius`` tokens to each side.

        sequence_ids_BT: equal where tokens belong to one text, which attention stays inside of;
        None: each row is one.
        """
        B, T = shape
        block = max(radius, SMALLEST_BLOCK)
        if torch.compiler.is_exporting() or -(-T // block) <= DENSE_BLOCKS:  # any T, exported
            places_T = torch.arange(T, device=device)
            near = ((places_T[:, None] - places_T).abs() <= radius)[None]
            if sequence_ids_BT is not None:
                near = near & (sequence_ids_BT[:, :, None] == sequence_ids_BT[:, None, :])
            return cls(additive_mask(near[:, None]), 0)
        places_C = torch.arange(block, device=device)
        keys_S = torch.arange(-block, 2 * block, device=device)
        near = (places_C[:, None] - keys_S).abs() <= radius
        if sequence_ids_BT is None:
            sequence_ids_BT = torch.zeros(1, T, dtype=torch.int32, device=device)
        # What is behind a row's end is a text of its own, as is what is before its beginning.
        rows = len(sequence_ids_BT)
        ids_BPC = in_blocks(sequence_ids_BT, block, beyond=-1)
        same = ids_BPC[..., None] == neighbourhoods(ids_BPC, beyond=-2)[:, :, None, :]
        mask = additive_mask(same & near)
        if rows < B:
            mask = mask.expand(B, -1, -1, -1)
        return cls(mask.flatten(0, 1).unsqueeze(1), block)


def local_attention(
    q_BTNH: Tensor, k_BTNH: Tensor, v_BTNH: Tensor, window: LocalWindow, dropout: float = 0.0
) -> Tensor:
    """Attention of each token to those in its window, (B, T, N, H)."""
    if not window.block:
        mixed_BNTH = attention(
            *(part.transpose(1, 2) for part in (q_BTNH, k_BTNH, v_BTNH)),
            mask=window.mask,
            dropout=dropout,
        )
        return mixed_BNTH.transpose(1, 2)
    B, T = q_BTNH.shape[:2]
    queries = in_blocks(q_BTNH, window.block)
    keys, values = (neighbourhoods(in_blocks(part, window.block)) for part in (k_BTNH, v_BTNH))
    # The blocks are rows of a batch.
    mixed = attention(
        *(part.flatten(0, 1).transpose(1, 2) for part in (queries, keys, values)),
        mask=window.mask,
        dropout=dropout,
    )
    return mixed.transpose(1, 2).unflatten(0, (B, -1)).flatten(1, 2)[:, :T]


def in_blocks(rows_BT: Tensor, block: int, beyond: int = 0) -> Tensor:
    """Rows (B, T, …) cut into blocks (B, P, C, …), the last filled up with ``beyond``."""
    missing = -rows_BT.shape[1] % block
    if missing:
        rows_BT = F.pad(rows_BT, (*[0] * (2 * (rows_BT.dim() - 2)), 0, missing), value=beyond)
    return rows_BT.unflatten(1, (-1, block))


def neighbourhoods(blocks_BPC: Tensor, beyond: int = 0) -> Tensor:
    """Each block (B, P, C, …) between the two beside it, (B, P, 3 C, …); ``beyond`` stands before
    the first and behind the last."""
    around = F.pad(blocks_BPC, (*[0] * (2 * (blocks_BPC.dim() - 2)), 1, 1), value=beyond)
    return torch.cat((around[:, :-2], blocks_BPC, around[:, 2:]), dim=2)


@dataclass(frozen=True)
class Surroundings:
    """What the tokens of one forward pass may attend to in layers of one kind, and where they
    stand."""

    cos: Tensor
    sin: Tensor
    """Sines of the rotary angles, broadcastable to (B, T, N, H / 2), as the cosines are."""
    mask: Tensor | None = None
    """In a global layer: additive, broadcastable to (B, N, T, T); None: all may see all."""
    window: LocalWindow | None = None
    """In a local layer."""
    packed: PackedSequences | None = None
    """In a mask's place, for a kernel that goes by the bounds of texts."""
    radius: int | None = None
    """With ``packed``: tokens on each side in a local layer."""
    virtual: Virtual | None = None
    """The tokens among these that stand before a text, and are of no word."""


class RotarySelfAttention(nn.Module):
    """An encoder's self-attention with rotary positions and without biases, to all tokens or in a
    window."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.fused_rows = {"query_key_value": [width] * 3}
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, around: Surroundings, layer: int = 0) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BT3NH = self.query_key_value(x_BTD).view(B, T, 3, self.num_heads, -1)
        q_BTNH, k_BTNH, v_BTNH = rotate_fused(qkv_BT3NH, around.cos, around.sin)
        if around.virtual is not None:
            k_BNTH, v_BNTH = around.virtual.keys_values(
                layer, k_BTNH.transpose(1, 2), v_BTNH.transpose(1, 2)
            )
            k_BTNH, v_BTNH = k_BNTH.transpose(1, 2), v_BNTH.transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if around.window is not None:
            mixed_BTNH = local_attention(q_BTNH, k_BTNH, v_BTNH, around.window, dropout)
        else:
            mixed_BTNH = attention(
                *(part.transpose(1, 2) for part in (q_BTNH, k_BTNH, v_BTNH)),
                mask=around.mask,
                packed=around.packed,
                radius=around.radius,
                dropout=dropout,
            ).transpose(1, 2)
        return self.output(mixed_BTNH.reshape(B, T, D))
