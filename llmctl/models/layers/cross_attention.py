"""Attention of a decoder to the states of a source that another network has read.

    x = x + CrossAttention(Q = norm(x), K = V = source)       (Vaswani et al. 2017, §3.2.3)

B rows, T tokens, S tokens of the source, D width, N heads, H head width; G sources, each of which
the same number of consecutive rows write from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from llmctl.models.layers.attention import additive_mask, attention, to_column_major
from llmctl.models.layers.packing import PackedSequences


@dataclass
class EncoderOutput:
    """What a decoder writes from. Keys and values of each layer are made once."""

    states_GSD: Tensor
    """Hidden states of the source's tokens; without them the start is all there is."""
    mask_G11S: Tensor | None = None
    """Additive: −∞ where a source is padded; None: nowhere. For packed rows (G, 1, T, S)."""
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
    packed: PackedSequences | None = None
    """Where rows hold several sources end to end: which."""

    def apart(self, targets: PackedSequences) -> EncoderOutput:
        """For packed targets: each attends to the source of its number in the row, and what is of
        none to all of the row's, as a mask without any place would give no numbers."""
        if self.packed is None:
            return self
        numbers_BS, numbers_BT = self.packed.sequence_ids_BT, targets.sequence_ids_BT
        same_BTS = numbers_BT[:, :, None] == numbers_BS[:, None, :]
        same_BTS |= ~same_BTS.any(-1, keepdim=True)
        return replace(self, mask_G11S=additive_mask(same_BTS)[:, None])

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
        head_size: int | None = None,
        scale: float | None = None,
    ) -> None:
        """head_norm: of each query's and key's head, where the architecture has one. head_size:
        where the heads together are not as wide as the states. scale: of the scores, in the place
        of 1 / √d_k."""
        super().__init__()
        self.num_heads, self.dropout, self.scale = num_heads, dropout, scale
        self.norm, self.head_norm = norm, head_norm
        inner = num_heads * (head_size or width // num_heads)
        self.query = nn.Linear(width, inner, bias=bias)
        self.key_value = nn.Linear(width, 2 * inner, bias=bias)
        self.fused_rows = {"key_value": [inner, inner]}
        self.output = nn.Linear(inner, width, bias=bias)

    def forward(self, x_BTD: Tensor, source: EncoderOutput, layer: int) -> Tensor:
        B, T, _ = x_BTD.shape
        N, beams = self.num_heads, source.beams_per_source
        k_GNSH, v_GNSH = source.keys_values(layer, self._keys_values)
        # Rows of one source are read together, as if they were one text without an order.
        q_GNTH = self.query(self.norm(x_BTD)).view(B // beams, beams * T, N, -1).transpose(1, 2)
        if self.head_norm is not None:
            q_GNTH = self.head_norm(q_GNTH)
        mixed_GNTH = attention(
            q_GNTH,
            k_GNSH,
            v_GNSH,
            mask=source.mask,
            dropout=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return self.output(mixed_GNTH.transpose(1, 2).reshape(B, T, -1))

    def _keys_values(self, states_GSD: Tensor) -> tuple[Tensor, Tensor]:
        G, S, _ = states_GSD.shape
        heads_2GNSH = self.key_value(states_GSD).view(G, S, 2, self.num_heads, -1)
        k_GNSH, v_GNSH = heads_2GNSH.permute(2, 0, 3, 1, 4).unbind(0)
        return (k_GNSH if self.head_norm is None else self.head_norm(k_GNSH)), v_GNSH


def source_mask(lengths_G: Tensor, longest: int) -> Tensor | None:
    """The additive mask (G, 1, 1, S) of padded sources; None where all are as long."""
    allowed_GS = torch.arange(longest, device=lengths_G.device) < lengths_G[:, None]
    return None if bool(allowed_GS.all()) else additive_mask(allowed_GS)[:, None, None]
