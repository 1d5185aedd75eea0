"""Attention of a decoder to the states of a source that another network has read.

    x = x + CrossAttention(Q = norm(x), K = V = source)       (Vaswani et al. 2017, §3.2.3)

B rows, T tokens, S tokens of the source, D width, N heads, H head width; G sources, each of which
the same number of consecutive rows write from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from llmctl.models.layers.attention import additive_mask, attention, to_column_major


@dataclass
class EncoderOutput:
    """What a decoder writes from. Keys and values of each layer are made once."""

    states_GSD: Tensor
    """Hidden states of the source's tokens; without them the start is all there is."""
    mask_G11S: Tensor | None = None
    """Additive: −∞ where a source is padded; None: nowhere."""
    initial_state_GD: Tensor | None = None
    """Added to the first token's embedding: the decoder's initial state."""
    _made: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of all sources, by layer."""
    _taken: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of the sources that are still written from, in their order."""
    _groups: list[int] | None = None
    """Their numbers; None: all, a row each."""
    beams_per_source: int = 1
    """Rows that write from each."""

    def add_initial_state(self, x_BTD: Tensor, position_ids: Tensor) -> Tensor:
        """The embeddings, with the initial state at position 0."""
        if self.initial_state_GD is None:
            return x_BTD
        return x_BTD + self.initial_state_GD[:, None] * (position_ids == 0)[..., None].to(
            x_BTD.dtype
        )

    def reset_beams(self) -> None:
        """A row for each source again."""
        self._groups, self.beams_per_source = None, 1
        self._taken.clear()

    def select(self, rows_B: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        count = len(self.states_GSD)
        before = range(count) if self._groups is None else self._groups
        numbers = [before[row // self.beams_per_source] for row in rows_B.tolist()]
        runs = [(number, len(list(run))) for number, run in groupby(numbers)]
        alike = len({length for _, length in runs}) == 1
        groups = [number for number, _ in runs] if alike else numbers
        self.beams_per_source = runs[0][1] if alike else 1
        if groups != list(before):
            self._groups = groups
            self._taken.clear()

    def keys_values(
        self, layer: int, make: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (G, N, S, H) of a layer, made from the states if they are not yet."""
        if layer not in self._made:
            k_GNSH, v_GNSH = make(self.states_GSD)
            if not k_GNSH.requires_grad:  # every token of the target will come to them
                k_GNSH, v_GNSH = to_column_major(k_GNSH), v_GNSH.contiguous()
            self._made[layer] = k_GNSH, v_GNSH
        if self._groups is None:
            return self._made[layer]
        if layer not in self._taken:
            k_GNSH, v_GNSH = self._made[layer]
            # Keys stay laid out as they are.
            k_GNSH = k_GNSH.transpose(-1, -2)[self._groups].transpose(-1, -2)
            self._taken[layer] = (k_GNSH, v_GNSH[self._groups])
        return self._taken[layer]

    @property
    def mask(self) -> Tensor | None:
        """The mask of the sources that are still written from."""
        if self._groups is None or self.mask_G11S is None:
            return self.mask_G11S
        return self.mask_G11S[self._groups]


class CrossAttention(nn.Module):
    """The sublayer: norm, attention to a source, projection."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        norm: Callable[[Tensor], Tensor],
        bias: bool,
        dropout: float = 0.0,
        head_norm: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """head_norm: of each query's and key's head, where the architecture has one."""
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm, self.head_norm = norm, head_norm
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(width, 2 * width, bias=bias)
        self.fused_rows = {"key_value": [width, width]}
        self.output = nn.Linear(width, width, bias=bias)

    def forward(self, x_BTD: Tensor, source: EncoderOutput, layer: int) -> Tensor:
        B, T, D = x_BTD.shape
        N, beams = self.num_heads, source.beams_per_source
        k_GNSH, v_GNSH = source.keys_values(layer, self._keys_values)
        # Rows of one source are read together, as if they were one text without an order.
        q_GNTH = self.query(self.norm(x_BTD)).view(B // beams, beams * T, N, D // N).transpose(1, 2)
        if self.head_norm is not None:
            q_GNTH = self.head_norm(q_GNTH)
        mixed_GNTH = attention(
            q_GNTH,
            k_GNSH,
            v_GNSH,
            mask=source.mask,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.output(mixed_GNTH.transpose(1, 2).reshape(B, T, D))

    def _keys_values(self, states_GSD: Tensor) -> tuple[Tensor, Tensor]:
        G, S, D = states_GSD.shape
        N = self.num_heads
        k_GSD, v_GSD = self.key_value(states_GSD).chunk(2, dim=-1)
        k_GNSH = k_GSD.reshape(G, S, N, D // N).transpose(1, 2)
        v_GNSH = v_GSD.reshape(G, S, N, D // N).transpose(1, 2)
        return (k_GNSH if self.head_norm is None else self.head_norm(k_GNSH)), v_GNSH


def source_mask(lengths_G: Tensor, longest: int) -> Tensor | None:
    """The additive mask (G, 1, 1, S) of padded sources; None where all are as long."""
    allowed_GS = torch.arange(longest, device=lengths_G.device) < lengths_G[:, None]
    return None if bool(allowed_GS.all()) else additive_mask(allowed_GS)[:, None, None]
