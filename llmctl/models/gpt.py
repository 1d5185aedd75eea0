"""GPT-2: a causal Transformer decoder (Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners").

Notable: learned positions; pre-norm blocks and a last norm; GELU in its tanh form; biases
everywhere; the output layer is the token embedding. H⁰ = X·E + P, then per block
x = x + attention(norm(x)); x = x + feed_forward(norm(x)).

The body returns hidden states; the head belongs to the objective.

B batch, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from llmctl.models.config_json import (
    ACTIVATION_NAMES,
    ACTIVATIONS_BY_NAME,
    FieldTable,
    Read,
)
from llmctl.models.decoder import HEAD_NAMES, Block, Decoder, DecoderConfig, start_decoder
from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.context import Context
from llmctl.models.layers.cross_attention import CrossAttention
from llmctl.models.layers.feed_forward import Activation, FeedForward
from llmctl.models.scaling import CAUSAL
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import BOTH, Rename, Transpose, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    # The three small ones are minGPT's, the two large ones those of Radford et al. 2019.
    "nano": {"num_layers": 3, "hidden_size": 48, "num_heads": 3},
    "micro": {"num_layers": 4, "hidden_size": 128, "num_heads": 4},
    "mini": {"num_layers": 6, "hidden_size": 192, "num_heads": 6},
    "small": {"num_layers": 12, "hidden_size": 768, "num_heads": 12},
    "medium": {"num_layers": 24, "hidden_size": 1024, "num_heads": 16},
}


class GptConfig(DecoderConfig):
    """The shape of a GPT-2."""

    activation: Activation = "gelu_tanh"
    """Activation of the feed-forward network."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout of embeddings, attention weights and block outputs. GPT-2 has 0.1; a run of few
    passes over its text learns faster without."""
    norm_epsilon: float = Field(1e-5, gt=0.0)
    """Term added to the variance in every normalisation, ε."""
    tie_embeddings: bool = True
    """Whether the output layer is the token embedding."""
    scale_by_width: bool = True
    """Divide attention's scores by the square root of a head's width, as GPT-2 does."""
    scale_by_layer: bool = False
    """Divide attention's scores by the layer's number too, counted from 1: for training in fp16."""

    def attention_dropout(self) -> float:
        return self.dropout


class GptAttention(CausalSelfAttention):
    """Self-attention, whose scores may be scaled otherwise."""

    def __init__(self, config: GptConfig, layer: int) -> None:
        """layer: the block's number, counted from 0."""
        head_size = config.hidden_size // config.num_heads
        super().__init__(
            config.hidden_size,
            config.num_heads,
            num_kv_heads=config.num_heads,
            head_size=head_size,
            bias=True,
            dropout=config.dropout,
        )
        self.factor = 1.0 if config.scale_by_width else math.sqrt(head_size)
        """A factor of the queries, which are scaled by 1 / √d_k afterwards."""
        if config.scale_by_layer:
            self.factor /= layer + 1

    def apply_positions(
        self, q_BNTH: Tensor, k_BKTH: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        return (q_BNTH if self.factor == 1.0 else q_BNTH * self.factor), k_BKTH


class Gpt(Decoder):
    """The decoder: token ids to hidden states."""

    config: GptConfig

    def __init__(self, config: GptConfig, *, cross_attention: bool = False) -> None:
        """cross_attention: whether the blocks attend to a source too."""
        super().__init__()
        self.config = config
        width, heads, dropout = config.hidden_size, config.num_heads, config.dropout
        norm = partial(nn.LayerNorm, width, eps=config.norm_epsilon)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Embedding(config.max_positions, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                norm,
                GptAttention(config, layer),
                CrossAttention(width, heads, norm=norm(), bias=True, dropout=dropout)
                if cross_attention
                else None,
                FeedForward(width, config.intermediate_size, config.activation),
                dropout,
            )
            for layer in range(config.num_layers)
        )
        self.norm = norm()
        start_decoder(self, config)

    def embed(self, input_ids_BT: Tensor, context: Context) -> tuple[Tensor, Context]:
        positions = self.position_embedding(context.position_ids)
        x_BTD = context.embedded(self.token_embedding(input_ids_BT)) + positions
        return self.dropout(context.add_initial_state(x_BTD)), context


WEIGHTS = WeightMap(
    "a GPT-2",
    "transformer.",
    (
        Rename("token_embedding", "transformer.wte"),
        Rename("position_embedding", "transformer.wpe"),
        Rename("norm", "transformer.ln_f", BOTH),
        Rename("blocks.{}.norm_1", "transformer.h.{}.ln_1", BOTH),
        Transpose("blocks.{}.attention.query_key_value", "transformer.h.{}.attn.c_attn", BOTH),
        Transpose("blocks.{}.attention.output", "transformer.h.{}.attn.c_proj", BOTH),
        Rename("blocks.{}.norm_2", "transformer.h.{}.ln_2", BOTH),
        Transpose("blocks.{}.feed_forward.expand", "transformer.h.{}.mlp.c_fc", BOTH),
        Transpose("blocks.{}.feed_forward.contract", "transformer.h.{}.mlp.c_proj", BOTH),
    ),
    {**HEAD_NAMES, "tag": (Rename("output", "classifier", BOTH),)},
)
"""The names of Hugging Face's."""


def to_hugging_face(config: GptConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_attn_weights": config.scale_by_width,
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
    }


FIELDS = FieldTable(
    "a GPT-2",
    read={
        "vocab_size": Read("vocab_size", int),
        "n_layer": Read("num_layers", int),
        "n_embd": Read("hidden_size", int),
        "n_head": Read("num_heads", int),
        "n_inner": Read("intermediate_size", int, None, null=0),
        "n_positions": Read("max_positions", int),
        "activation_function": Read(
            "activation",
            str,
            "gelu_new",
            names=ACTIVATIONS_BY_NAME,
        ),
        "resid_pdrop": Read("dropout", float, 0.1),
        "layer_norm_epsilon": Read("norm_epsilon", float, 1e-5),
        "initializer_range": Read("initializer_range", float, 0.02),
        "tie_word_embeddings": Read("tie_embeddings", bool, True),
        "scale_attn_weights": Read("scale_by_width", bool, True),
        "scale_attn_by_inverse_layer_idx": Read("scale_by_layer", bool, False),
    },
    neutral=frozenset(
        {
            # Scores in fp32 where the rest is in fp16; n_ctx is n_positions' old name, unread.
            "reorder_and_upcast_attn", "n_ctx", "is_decoder",
            # What the first GPT-2s' files say of pieces beyond the vocabulary: there are none.
            "n_special", "predict_special_tokens",
            # Of GPT2DoubleHeadsModel alone.
            "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
            "summary_type", "summary_use_proj",
        }
    ),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)  # fmt: skip
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> GptConfig:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what this GPT does not have.
    """
    return FIELDS.build(GptConfig, fields)


SPEC = ModelSpec(
    name="gpt",
    config=GptConfig,
    build=Gpt,
    presets=PRESETS,
    tasks=("causal_lm",),
    weights={HUGGING_FACE: WEIGHTS},
    model_type="gpt2",
    class_prefix="GPT2",
    lm_class="LMHeadModel",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
    scaling=replace(CAUSAL, tokens_factor=9.595),
)
