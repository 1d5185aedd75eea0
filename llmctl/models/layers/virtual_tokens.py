"""Virtual tokens: what stands before each text and was learned, where the network stays as it is.

A **soft prompt** (Lester et al. 2021, arXiv:2104.08691) is P embeddings of no word. A **prefix**
(Li and Liang 2021, arXiv:2101.00190) is the keys and values that P such tokens have in the
self-attention of each layer, whatever their states would be; P-tuning v2 (Liu et al. 2021,
arXiv:2110.07602) is a prefix, too.

Either way they take places of their own: a text's positions begin behind them, and what attention
sees of a text's tokens it sees of its virtual ones. A row of several texts has them before each.

B rows, T tokens of a row as it is given and S with the virtual ones, P virtual tokens, G texts,
D width, L layers, K key/value heads, H head width, M = G · P.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.packing import PackedSequences

ROW_STEP = 32
"""Rows of several texts are as long as a multiple of this: see ``heads.padding.rounded_up``."""


@dataclass(frozen=True)
class VirtualShape:
    """How many virtual tokens there are, and of which kind."""

    count: int
    embedding_width: int = 0
    """Width of a soft prompt's embeddings; 0: it is a prefix."""
    layers: int = 0
    heads: int = 0
    head_size: int = 0
    """Layers of a prefix, its key/value heads and their width."""


class VirtualTokens(nn.Module):
    """The virtual tokens of a backbone: embeddings (P, D), or keys and values (L, 2, K, P, H)."""

    def __init__(self, shape: VirtualShape) -> None:
        super().__init__()
        self.shape, self.count = shape, shape.count
        self.embeddings: nn.Parameter | None = None
        self.keys_values: nn.Parameter | None = None
        if shape.embedding_width:
            self.embeddings = nn.Parameter(torch.zeros(shape.count, shape.embedding_width))
        else:
            self.keys_values = nn.Parameter(
                torch.zeros(shape.layers, 2, shape.heads, shape.count, shape.head_size)
            )

    @property
    def is_prompt(self) -> bool:
        """Whether they are embeddings, and not keys and values."""
        return bool(self.shape.embedding_width)

    def learned(self) -> Tensor:
        """The embeddings, or the keys and values."""
        learned = self.embeddings if self.is_prompt else self.keys_values
        assert learned is not None
        return learned

    def folded(self) -> VirtualTokens:
        """Virtual tokens like these by their embeddings, or keys and values, alone."""
        return self

    def before(
        self,
        input_ids_BT: Tensor,
        mask: Tensor | PackedSequences | None = None,
        position_ids_BT: Tensor | None = None,
        segment_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        *,
        causal: bool = False,
    ) -> WidenedRows:
        """Rows with the virtual tokens before each of their texts.

        mask: the texts of packed rows, or bool, (B, T) True at real tokens, or (B, T, T) True where
        token i may attend to token j. cache: an empty one, whose rows may begin behind padding.
        causal: whether a virtual token sees none behind it.
        """
        B, T = input_ids_BT.shape
        packed = mask if isinstance(mask, PackedSequences) else None
        starts_B = None if cache is None else cache.starts_B
        if packed is None and starts_B is None:
            places_BT = None
            firsts_G = torch.arange(B, device=input_ids_BT.device) * (T + self.count)
            S = T + self.count
        else:
            begins_BT = _begins(input_ids_BT, packed, starts_B)
            groups_BT = begins_BT.cumsum(1)
            S = T + self.count
            if packed is not None:
                S = T + self.count * int(groups_BT[:, -1].max())
                S = -(-S // ROW_STEP) * ROW_STEP
            places_BT = torch.arange(T, device=input_ids_BT.device) + self.count * groups_BT
            rows_G, columns_G = begins_BT.nonzero(as_tuple=True)
            firsts_G = rows_G * S + places_BT[rows_G, columns_G] - self.count
        own_P = torch.arange(self.count, device=input_ids_BT.device)
        places_M = (firsts_G[:, None] + own_P).flatten()
        frame = _Frame(places_BT, places_M, B, S, self.count)
        positions = None
        if position_ids_BT is not None:
            position_ids_BT = position_ids_BT.expand(B, T)
            positions = frame.widened(position_ids_BT + self.count, own_P.repeat(len(firsts_G)))
        return WidenedRows(
            input_ids_BS=frame.widened(input_ids_BT, 0),
            segment_ids_BS=None if segment_ids_BT is None else frame.widened(segment_ids_BT, 0),
            mask=_widened_mask(mask, frame, causal=causal),
            position_ids_BS=positions,
            virtual=Virtual(places_M, self.learned(), is_prompt=self.is_prompt),
            frame=frame,
        )


@dataclass(frozen=True)
class _Frame:
    """Where the given tokens and the virtual ones stand in widened rows."""

    places_BT: Tensor | None
    """The column of each given token; None: all stand behind the virtual ones of one text."""
    places_M: Tensor
    """Flat places b · S + s of the virtual tokens, text after text."""
    rows: int
    length: int
    count: int

    def widened(self, values_BT: Tensor, virtual: int | bool | Tensor) -> Tensor:
        """Values of tokens with those of virtual ones, which are all ``virtual`` or (M,) each."""
        filled_BS = values_BT.new_zeros(self.rows, self.length)
        if isinstance(virtual, Tensor) or virtual:
            filled_BS.view(-1)[self.places_M] = (
                virtual.to(filled_BS.dtype)
                if isinstance(virtual, Tensor)
                else filled_BS.new_tensor(virtual)
            )
        if self.places_BT is None:
            filled_BS[:, self.count :] = values_BT
            return filled_BS
        return filled_BS.scatter_(1, self.places_BT, values_BT)


@dataclass(frozen=True)
class Virtual:
    """The virtual tokens of one forward pass: what takes whose place."""

    places_M: Tensor
    learned: Tensor
    """(P, D), or (L, 2, K, P, H)."""
    is_prompt: bool

    def embed(self, x_BSD: Tensor) -> Tensor:
        """Token embeddings with those of a soft prompt in their places."""
        return self._put(x_BSD, self.learned) if self.is_prompt else x_BSD

    def keys_values(self, layer: int, k_BKSH: Tensor, v_BKSH: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer with those of a prefix in their places."""
        if self.is_prompt:
            return k_BKSH, v_BKSH
        k, v = (
            self._put(part.transpose(1, 2), own_KPH.transpose(0, 1)).transpose(1, 2)
            for part, own_KPH in zip((k_BKSH, v_BKSH), self.learned[layer], strict=True)
        )
        return k, v

    def _put(self, rows_BS: Tensor, own_P: Tensor) -> Tensor:
        """Rows (B, S, …) with ``own_P`` (P, …) at the places of each text's virtual tokens."""
        texts = len(self.places_M) // len(own_P)
        own_M = own_P.to(rows_BS.dtype).repeat(texts, *[1] * (own_P.dim() - 1))
        return rows_BS.flatten(0, 1).index_copy(0, self.places_M, own_M).view(rows_BS.shape)


@dataclass(frozen=True)
class _Noted(Virtual):
    """No token, which notes what keys and values the others have."""

    noted: list[Tensor]

    def keys_values(self, layer: int, k_BKSH: Tensor, v_BKSH: Tensor) -> tuple[Tensor, Tensor]:
        self.noted.append(torch.stack((k_BKSH, v_BKSH)))
        return k_BKSH, v_BKSH


class _Recorder(VirtualTokens):
    """No tokens, in whose place it is noted what a network makes of the others."""

    def __init__(self) -> None:
        super().__init__(VirtualShape(0, layers=0))
        self.noted: list[Tensor] = []

    def before(self, *given: Any, **more: Any) -> WidenedRows:
        rows = super().before(*given, **more)
        return replace(
            rows, virtual=_Noted(rows.virtual.places_M, self.learned(), False, self.noted)
        )


@torch.no_grad()
def recorded(body: Any, ids_1P: Tensor) -> Tensor:
    """The keys and values (L, 2, K, P, H) that a backbone has of some tokens, read alone; of an
    encoder–decoder its decoder's, where they are the source too."""
    before, training = body.virtual_tokens, body.training
    recorder = _Recorder()
    body.put_before_texts(recorder)
    body.eval()
    try:
        if body.kind == "encoder-decoder":
            body(ids_1P, body.read(ids_1P))
        else:
            body(ids_1P)
    finally:
        body.put_before_texts(before)
        body.train(training)
    return torch.stack(recorder.noted)[:, :, 0].float()


@dataclass(frozen=True)
class WidenedRows:
    """Rows with virtual tokens before each text, as a backbone takes them."""

    input_ids_BS: Tensor
    """0 where a virtual token stands."""
    segment_ids_BS: Tensor | None
    mask: Tensor | PackedSequences | None
    position_ids_BS: Tensor | None
    virtual: Virtual
    frame: _Frame

    def of_texts(self, hidden_BSD: Tensor, with_prompt: bool = False) -> Tensor:
        """Hidden states (B, T, D) of the given tokens, or with those of a soft prompt before them
        (B, P + T, D)."""
        places_BT = self.frame.places_BT
        if with_prompt and self.virtual.is_prompt:
            assert places_BT is None
            return hidden_BSD
        if places_BT is None:
            return hidden_BSD[:, self.frame.count :]
        return hidden_BSD.gather(1, places_BT[..., None].expand(-1, -1, hidden_BSD.shape[-1]))


def _begins(
    input_ids_BT: Tensor, packed: PackedSequences | None, starts_B: Tensor | None
) -> Tensor:
    """(B, T), bool: the first token of each text."""
    if packed is not None:
        ids_BT = packed.sequence_ids_BT
        changes_BT = ids_BT[:, 1:] != ids_BT[:, :-1]
        return F.pad(changes_BT, (1, 0), value=True)
    assert starts_B is not None
    slots_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    return slots_T == starts_B[:, None]


def _widened_mask(
    mask: Tensor | PackedSequences | None, frame: _Frame, *, causal: bool
) -> Tensor | PackedSequences | None:
    if mask is None:
        return None
    P = frame.count
    if isinstance(mask, PackedSequences):
        ids_BT = mask.sequence_ids_BT
        begins_BT = _begins(ids_BT, mask, None)
        # From 1 on: what is behind a row's last text is of none, 0.
        low = int(ids_BT.min())
        raised_BT = ids_BT - low + 1
        own_M = raised_BT[begins_BT].repeat_interleave(P)
        ids_BS = frame.widened(raised_BT, own_M) + (low - 1)
        return PackedSequences.of(ids_BS.cpu().numpy()).to(ids_BS.device)
    if mask.dim() == 2:
        return frame.widened(mask, True)
    # All of a row is one text: each token sees the virtual ones, and these what its first sees.
    wide_BSS = F.pad(mask, (P, 0, P, 0), value=True)
    if causal:
        wide_BSS[:, :P].tril_()
    else:
        wide_BSS[:, :P, P:] = mask[:, :1]
    return wide_BSS
