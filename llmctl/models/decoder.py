"""What the decoders share: their shape's fields, a pre-norm block, the way through the blocks.

    x = x + attention(norm(x));  x = x + feed_forward(norm(x))

B batch, T tokens, D width, H head width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.context import Context, make_context
from llmctl.models.layers.cross_attention import CrossAttention, EncoderOutput
from llmctl.models.layers.initialisation import start_pre_norm
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.rotary import for_halves
from llmctl.models.layers.sequences import SequenceBatch
from llmctl.models.spec import Backbone, ModelConfig
from llmctl.models.weight_map import BOTH, Rename


class DecoderConfig(ModelConfig):
    """The shape that every decoder has."""

    initializer_range: float = Field(0.02, gt=0.0)
    """Standard deviation of fresh weights."""
    tie_embeddings: bool = False
    """Whether the output layer is the token embedding."""

    def kv_shape(self) -> tuple[int, int]:
        """Heads of keys and values, and the width of each."""
        return self.num_heads, self.hidden_size // self.num_heads

    def sees_both_sides(self) -> bool:
        """Whether each token sees those behind it too, as an encoder's do."""
        return False

    def output_cap(self) -> float | None:
        """Logits z become cap · tanh(z / cap); None: they stay."""
        return None

    def window(self) -> int:
        """Tokens that a token attends to, itself the last of them; 0: all before it."""
        return 0

    def wide_layers(self) -> frozenset[int]:
        """Layers in which a token attends to all before it, whatever the window."""
        return frozenset()

    def attention_dropout(self) -> float:
        """Dropout of attention's weights."""
        return 0.0

    def output_std(self) -> float:
        """Standard deviation of a fresh output layer of its own."""
        return self.initializer_range

    def new_cache(
        self, rows: int, capacity: int, like: Tensor, starts_B: Tensor | None = None
    ) -> KeyValueCache:
        """An empty cache for ``rows`` texts of up to ``capacity`` tokens."""
        num_heads, head_size = self.kv_shape()
        return KeyValueCache.allocate(
            num_layers=self.num_layers,
            rows=rows,
            num_heads=num_heads,
            capacity=capacity,
            head_size=head_size,
            like=like,
            starts_B=starts_B,
        )


class TwoWayConfig(DecoderConfig):
    """The shape of a decoder that may read both ways."""

    bidirectional: bool = False
    """Whether each token sees those behind it too, as in a classifier made of a model that was
    pretrained both ways. A language model reads from left to right."""

    def sees_both_sides(self) -> bool:
        return self.bidirectional


HEAD_NAMES = {
    "causal_lm": (Rename("output", "lm_head", where="not tie_embeddings"),),
    "classify": (Rename("output", "score"),),
    "regress": (Rename("output", "score"),),
    "tag": (Rename("output", "score", BOTH),),
}
"""Hugging Face's names of what stands on every decoder."""
TWO_WAY_HEADS = {**HEAD_NAMES, "gpt_bert": HEAD_NAMES["causal_lm"]}
"""Those of what stands on one that may read both ways."""


class Block(nn.Module):
    """One layer: attention and feed-forward, each on its normalised input and added to it, and
    between them attention to a source where there is any."""

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        attention: CausalSelfAttention,
        cross_attention: CrossAttention | None,
        feed_forward: nn.Module,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_1 = norm()
        self.attention, self.cross_attention = attention, cross_attention
        self.norm_2 = norm()
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_1(x_BTD), context, layer))
        if self.cross_attention is not None and context.source is not None:
            x_BTD = x_BTD + self.dropout(self.cross_attention(x_BTD, context.source, layer))
        return x_BTD + self.dropout(self.feed_forward(self.norm_2(x_BTD)))


class Decoder(Backbone):
    """A network in which a token sees those before it; all, where it is asked to."""

    kind = "decoder"
    ends_normalised = True
    config: DecoderConfig
    norm: nn.Module

    def forward(
        self,
        input_ids_BT: Tensor,
        mask: Tensor | PackedSequences | None = None,
        position_ids_BT: Tensor | None = None,
        cache: KeyValueCache | SequenceBatch | None = None,
        source: EncoderOutput | None = None,
        bidirectional: bool | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the last layer, normalised.

        input_ids_BT: int64. mask: where attention is narrower than causal, the texts of packed
        rows, or bool, (B, T, T) True where token i may attend to token j. position_ids_BT: default
        0 … T-1, or behind the cache's. cache: of the tokens before, which these are added to.
        source: what is written from. bidirectional: whether each token sees those behind it too;
        default what the configuration says.
        """
        dropout = self.config.attention_dropout() if self.training else 0.0
        window = self.config.window()
        both = self.config.sees_both_sides() if bidirectional is None else bidirectional
        rows = None
        # Where many texts are written at once, each has the virtual tokens in its cache.
        begins = not isinstance(cache, SequenceBatch) and (cache is None or not cache.length)
        if self.virtual_tokens is not None and begins:
            assert not isinstance(cache, SequenceBatch)
            rows = self.virtual_tokens.before(
                input_ids_BT, mask, position_ids_BT, cache=cache, causal=not both
            )
            input_ids_BT, mask, position_ids_BT = rows.input_ids_BS, rows.mask, rows.position_ids_BS
        here = make_context(
            input_ids_BT, mask, position_ids_BT, cache, source, dropout, window, both
        )
        if self.config.wide_layers():
            here = replace(
                here,
                wide=make_context(
                    input_ids_BT, mask, position_ids_BT, cache, source, dropout, 0, both
                ),
            )
        if rows is not None:
            here = here.with_virtual(rows.virtual)
        x_BTD, here = self.embed(input_ids_BT, here)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, here, layer)
        if cache is not None:
            cache.advance(input_ids_BT.shape[1])
        hidden_BTD = self.finish(x_BTD)
        return hidden_BTD if rows is None else rows.of_texts(hidden_BTD)

    @abstractmethod
    def embed(self, input_ids_BT: Tensor, context: Context) -> tuple[Tensor, Context]:
        """What goes into the first block, and the context with what blocks need of positions."""


class RotaryDecoder(Decoder):
    """A decoder whose queries and keys are turned by their positions."""

    cos: Tensor
    sin: Tensor

    def turn_by(self, cos: Tensor, sin: Tensor) -> None:
        """Keep the tables of the angles, (positions, H / 2)."""
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def embed(self, input_ids_BT: Tensor, context: Context) -> tuple[Tensor, Context]:
        x_BTD = self.normalised(context.embedded(self.token_embedding(input_ids_BT)))
        x_BTD = context.add_initial_state(x_BTD)
        return x_BTD, turned(context, self.cos, self.sin)

    def normalised(self, x_BTD: Tensor) -> Tensor:
        """The embeddings as the first block takes them."""
        return x_BTD


def turned(context: Context, cos: Tensor, sin: Tensor) -> Context:
    """A context with the angles of its tokens, from tables (positions, H / 2)."""
    # The heads' dimension, where each row has positions of its own.
    cos, sin = (table[context.position_ids].unsqueeze(-3) for table in (cos, sin))
    if not torch.is_grad_enabled():
        cos, sin = for_halves(cos, sin)
    return replace(context, cos=cos, sin=sin)


def start_decoder(body: nn.Module, config: DecoderConfig) -> None:
    """Fresh weights, as every pre-norm network starts."""
    start_pre_norm(body, config.initializer_range, config.num_layers)
