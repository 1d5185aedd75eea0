"""What encoder–decoders share (Vaswani et al. 2017, §3.1): their shape's fields, and the way from a
source through the encoder and from the target's beginning through the decoder.

    H = encoder(source);   hidden = decoder(target, H)

One Backbone holds both stacks and the token embedding that they share. A row may hold several texts
end to end (packing); those of source and target with the same number then belong together.

B rows, S tokens of a source, T of a target, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.models.layers.attention import additive_mask
from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.context import Context, make_context
from llmctl.models.layers.cross_attention import EncoderOutput, source_mask
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.virtual_tokens import VirtualTokens
from llmctl.models.spec import MOST_LAYERS, Backbone, ModelConfig


class EncoderDecoderConfig(ModelConfig):
    """The shape that every encoder–decoder has."""

    num_layers: int = Field(6, ge=1, le=MOST_LAYERS, strict=True)
    """Blocks of the encoder."""
    decoder_layers: int = Field(0, ge=0, le=MOST_LAYERS, strict=True)
    """Blocks of the decoder. 0: as many as the encoder has."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout of embeddings, attention weights, and within and behind each block's parts."""

    @property
    def written_layers(self) -> int:
        """Blocks of the decoder."""
        return self.decoder_layers or self.num_layers

    @property
    def biased_logits(self) -> bool:
        """Whether a bias of the logits is kept."""
        return False

    def output_std(self) -> float:
        """Standard deviation of a fresh output layer of its own."""
        return float(self.hidden_size**-0.5)

    def kv_shape(self) -> tuple[int, int]:
        """Heads of the decoder's keys and values, and the width of each."""
        return self.num_heads, self.hidden_size // self.num_heads

    def new_cache(
        self, rows: int, capacity: int, like: Tensor, starts_B: Tensor | None = None
    ) -> KeyValueCache:
        """An empty cache for ``rows`` targets of up to ``capacity`` tokens."""
        num_heads, head_size = self.kv_shape()
        return KeyValueCache.allocate(
            num_layers=self.written_layers,
            rows=rows,
            num_heads=num_heads,
            capacity=capacity,
            head_size=head_size,
            like=like,
            starts_B=starts_B,
        )


def own_number(decoder: int, encoder: int) -> int:
    """A size of the decoder as configurations here have it: 0 where it is the encoder's."""
    return 0 if decoder == encoder else decoder


def differs(name: str, other: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is a tensor of a name, and it isn't the same as another."""
    bare = other.removeprefix("model.")
    there = next((known for known in (other, bare) if known in tensors), None)
    return name in tensors and there is not None and not torch.equal(tensors[name], tensors[there])


def check_shared(tensors: Mapping[str, Tensor], shared: str, names: Sequence[str]) -> None:
    """Raises ValueError where what others' files repeat of a shared tensor is something else."""
    for name in names:
        for known in (name, name.removeprefix("model.")):
            if differs(known, shared, tensors):
                raise ValueError(f"{known} is not {shared}, and one embedding for all is supported")


class Stack(nn.Module, ABC):
    """The blocks of an encoder or a decoder, and what stands before and behind them."""

    blocks: nn.ModuleList
    before: ClassVar[tuple[str, ...]] = ()
    """The parts that stand before the blocks."""

    def forward(self, embedded_BTD: Tensor, context: Context) -> Tensor:
        """Hidden states (B, T, D) from the tokens' embeddings."""
        x_BTD, context = self.enter(embedded_BTD, context)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, context, layer)
        return self.leave(x_BTD)

    @abstractmethod
    def enter(self, embedded_BTD: Tensor, context: Context) -> tuple[Tensor, Context]:
        """What goes into the first block, and the context with what blocks need of positions."""

    def leave(self, x_BTD: Tensor) -> Tensor:
        """The last block's states as they are used."""
        return x_BTD

    def start_as(self, other: Stack) -> None:
        """Take the weights of another's evenly chosen blocks, and all that is beside them."""
        for name, part in other.named_children():
            if name != "blocks":
                self.get_submodule(name).load_state_dict(part.state_dict())
        chosen = np.linspace(0, len(other.blocks) - 1, len(self.blocks)).round().astype(int)
        for block, number in zip(self.blocks, chosen.tolist(), strict=True):
            block.load_state_dict(other.blocks[number].state_dict())


class EncoderDecoder(Backbone):
    """A source's token ids and a target's to the target's hidden states."""

    kind = "encoder-decoder"
    config: EncoderDecoderConfig
    encoder: Stack
    decoder: Stack
    target_start: ClassVar[tuple[str, ...]] = ("pad", "eos")

    @property
    def slots_before(self) -> int:
        # A soft prompt stands before the source, a prefix before the target.
        return super().slots_before if self._virtual(is_prompt=False) is not None else 0

    def embed(self, input_ids_BT: Tensor) -> Tensor:
        """The tokens' embeddings, (B, T, D)."""
        return self.token_embedding(input_ids_BT)

    def _virtual(self, *, is_prompt: bool) -> VirtualTokens | None:
        """The virtual tokens, if they are of a kind."""
        virtual = self.virtual_tokens
        return virtual if virtual is not None and virtual.is_prompt == is_prompt else None

    def read(
        self,
        source_ids_BS: Tensor,
        lengths: Tensor | PackedSequences | None = None,
        position_ids_BS: Tensor | None = None,
    ) -> EncoderOutput:
        """What the decoder writes from.

        source_ids_BS: int64. lengths: of sources that are padded behind, (B,), or the texts of
        packed rows; default all are as long. position_ids_BS: default 0 … S-1.
        """
        dropout = self.config.dropout if self.training else 0.0
        prompt = self._virtual(is_prompt=True)
        rows = None
        if prompt is not None:
            packed_or_none = lengths if isinstance(lengths, PackedSequences) else None
            rows = prompt.before(source_ids_BS, packed_or_none, position_ids_BS)
            source_ids_BS, position_ids_BS = rows.input_ids_BS, rows.position_ids_BS
            lengths = lengths + prompt.count if isinstance(lengths, Tensor) else rows.mask
        packed = lengths if isinstance(lengths, PackedSequences) else None
        mask = None
        if packed is not None and not self.packs_by_bounds(packed, dropout):
            mask = additive_mask(packed.attention_mask()[:, None])
        elif packed is None and lengths is not None:
            mask = source_mask(lengths, source_ids_BS.shape[1])  # type: ignore[arg-type]
        context = replace(
            make_context(source_ids_BS, None, position_ids_BS, None, None),
            mask=mask,
            causal=False,
            packed=packed if mask is None else None,
        )
        embedded_BSD = self.embed(source_ids_BS)
        if rows is not None:
            embedded_BSD = rows.virtual.embed(embedded_BSD)
        states_BSD = self.encoder(embedded_BSD, context)
        return EncoderOutput(states_BSD, None if packed else mask, packed=packed)

    def forward(
        self,
        input_ids_BT: Tensor,
        source: EncoderOutput,
        mask: PackedSequences | None = None,
        position_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the target's tokens, as an output layer takes them.

        input_ids_BT: int64, a target's tokens up to each that is to be predicted. source: what
        ``read`` gave. mask: the texts of packed rows, of which each has its source in those of
        ``read``. position_ids_BT: default 0 … T-1, or behind the cache's. cache: of the tokens
        before, which these are added to.
        """
        dropout = self.config.dropout if self.training else 0.0
        prefix, rows = self._virtual(is_prompt=False), None
        if prefix is not None and (cache is None or not cache.length):
            rows = prefix.before(input_ids_BT, mask, position_ids_BT, cache=cache, causal=True)
            input_ids_BT, position_ids_BT = rows.input_ids_BS, rows.position_ids_BS
            mask = rows.mask  # type: ignore[assignment]  # packed as it was
        if mask is not None:
            source = source.apart(mask)
        narrowed: Tensor | PackedSequences | None = mask
        if mask is not None and not self.packs_by_bounds(mask, dropout):
            narrowed = mask.attention_mask(causal=True)
        context = make_context(input_ids_BT, narrowed, position_ids_BT, cache, source, dropout)
        if rows is not None:
            context = replace(context, virtual=rows.virtual)
        hidden_BTD = self.decoder(self.embed(input_ids_BT), context)
        if cache is not None:
            cache.advance(input_ids_BT.shape[1])
        return hidden_BTD if rows is None else rows.of_texts(hidden_BTD)

    def packs_by_bounds(self, packed: PackedSequences, dropout: float) -> bool:
        """Whether attention inside packed rows goes by their bounds, without a mask."""
        return packed.supports_varlen(dropout)

    def layers(self) -> Sequence[nn.Module]:
        return [*self.encoder.blocks, *self.decoder.blocks]

    def lowest(self, count: int) -> list[nn.Module]:
        """The encoder's lowest layers, the decoder's where these aren't enough, and the embeddings
        before them."""
        parts: list[nn.Module] = [self.token_embedding]
        for stack in (self.encoder, self.decoder):
            if count < len(stack.blocks):
                before = [part for name, part in stack.named_children() if name in stack.before]
                return [*parts, *before, *list(stack.blocks)[:count]]
            parts.append(stack)
            count -= len(stack.blocks)
        return parts

    def start_as(self, other: Self) -> None:
        self.token_embedding.load_state_dict(other.token_embedding.state_dict())
        self.encoder.start_as(other.encoder)
        self.decoder.start_as(other.decoder)
