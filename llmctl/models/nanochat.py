"""nanochat's decoder (Karpathy 2025, github.com/karpathy/nanochat): what trains fastest.

Notable: RMSNorm without gains, of the embedding too; rotary positions, then queries and keys
normalised; squared ReLU (So et al. 2021); no biases; an output layer of its own; logits capped
as 15 · tanh(z / 15). Blocks start as the identity: what they add begins at zero.
x = x + attention(norm(x)); x = x + feed_forward(norm(x)).

B batch, T tokens, D width, N heads, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.models.config_json import FieldError, FieldTable, Only, Read, shown
from llmctl.models.decoder import HEAD_NAMES, Block, DecoderConfig, RotaryDecoder
from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.context import Context
from llmctl.models.layers.cross_attention import CrossAttention
from llmctl.models.layers.feed_forward import FeedForward
from llmctl.models.layers.norms import PlainRMSNorm, rms_norm
from llmctl.models.layers.rotary import rotary_table, rotate
from llmctl.models.scaling import CAUSAL
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import Fuse, Rename, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    # nanochat's own: the width is 64 times the depth.
    "nano": {"num_layers": 2, "hidden_size": 128, "num_heads": 2},
    "mini": {"num_layers": 4, "hidden_size": 256, "num_heads": 4},
    "small": {"num_layers": 8, "hidden_size": 512, "num_heads": 4},
    "medium": {"num_layers": 12, "hidden_size": 768, "num_heads": 6},
    "large": {"num_layers": 20, "hidden_size": 1280, "num_heads": 10},
}


class NanoChatConfig(DecoderConfig):
    """The shape of a nanochat model."""

    rope_theta: float = Field(10000.0, gt=0.0)
    """Base of the rotary angles."""
    norm_epsilon: float = Field(1e-6, gt=0.0)
    """Term added to the mean square in every normalisation, ε."""
    logit_cap: float = Field(15.0, gt=0.0)
    """Logits z become cap · tanh(z / cap)."""
    embedding_range: float = Field(1.0, gt=0.0)
    """Standard deviation of fresh token embeddings, which are normalised anyway."""
    output_range: float = Field(0.001, gt=0.0)
    """Standard deviation of a fresh output layer: the first guess is almost uniform."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} over model.num_heads {self.num_heads} is "
                "odd; rotary positions need pairs"
            )
        return self

    def output_cap(self) -> float:
        return self.logit_cap

    def output_std(self) -> float:
        return self.output_range


class NanochatAttention(CausalSelfAttention):
    """Self-attention with rotary positions, then queries and keys normalised."""

    def __init__(self, config: NanoChatConfig) -> None:
        super().__init__(
            config.hidden_size,
            config.num_heads,
            num_kv_heads=config.num_heads,
            head_size=config.hidden_size // config.num_heads,
            bias=False,
            dropout=0.0,
        )
        self.epsilon = config.norm_epsilon

    def apply_positions(
        self, q_BNTH: Tensor, k_BKTH: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        assert context.cos is not None
        assert context.sin is not None
        return (
            rms_norm(rotate(q_BNTH, context.cos, context.sin), self.epsilon),
            rms_norm(rotate(k_BKTH, context.cos, context.sin), self.epsilon),
        )


class NanoChat(RotaryDecoder):
    """The decoder: token ids to hidden states."""

    config: NanoChatConfig

    def __init__(self, config: NanoChatConfig, *, cross_attention: bool = False) -> None:
        """cross_attention: whether the blocks attend to a source too."""
        super().__init__()
        self.config = config
        width, heads = config.hidden_size, config.num_heads
        norm = partial(PlainRMSNorm, config.norm_epsilon)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(
            Block(
                norm,
                NanochatAttention(config),
                CrossAttention(width, heads, norm=norm(), bias=False, head_norm=norm())
                if cross_attention
                else None,
                FeedForward(width, config.intermediate_size, "relu2", bias=False),
            )
            for _ in range(config.num_layers)
        )
        self.norm = norm()
        cos, sin = rotary_table(config.max_positions, width // heads, config.rope_theta)
        self.turn_by(cos, -sin)  # the other way round than Llama
        self._start(config)

    def normalised(self, x_BTD: Tensor) -> Tensor:
        return self.norm(x_BTD)

    @torch.no_grad()
    def _start(self, config: NanoChatConfig) -> None:
        """Fresh weights: uniform with variance 1/D, and zero where a block's result is added."""
        self.token_embedding.weight.normal_(0.0, config.embedding_range)
        bound = math.sqrt(3 / config.hidden_size)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith(("attention.output", "feed_forward.contract")):
                    module.weight.zero_()
                else:
                    module.weight.uniform_(-bound, bound)


WEIGHTS = WeightMap(
    "a nanochat model",
    "model.",
    (
        Rename("token_embedding", "model.embed_tokens"),
        Fuse(
            "blocks.{}.attention.query_key_value",
            tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        ),
        Rename("blocks.{}.attention.output", "model.layers.{}.self_attn.o_proj"),
        Rename("blocks.{}.feed_forward.expand", "model.layers.{}.mlp.fc1"),
        Rename("blocks.{}.feed_forward.contract", "model.layers.{}.mlp.fc2"),
    ),
    HEAD_NAMES,
)
"""The names of Hugging Face's."""


def to_hugging_face(config: NanoChatConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "hidden_act": "relu2",
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "final_logit_softcapping": config.logit_cap,
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
    }


FIELDS = FieldTable(
    "a nanochat model",
    read={
        "vocab_size": Read("vocab_size", int),
        "num_hidden_layers": Read("num_layers", int),
        "hidden_size": Read("hidden_size", int),
        "num_attention_heads": Read("num_heads", int),
        "intermediate_size": Read("intermediate_size", int),
        "max_position_embeddings": Read("max_positions", int),
        "rms_norm_eps": Read("norm_epsilon", float, 1e-6),
        "final_logit_softcapping": Read("logit_cap", float),
        "initializer_range": Read("initializer_range", float, 0.02),
        "tie_word_embeddings": Read("tie_embeddings", bool, False),
    },
    only={
        "hidden_act": Only(("relu2",)),
        "attention_bias": Only((None, False), "attention with biases is not supported"),
    },
    neutral=frozenset({"is_decoder"}),
    rotary=True,
)
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> NanoChatConfig:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what this model does not have.
    """
    fields = dict(fields)
    groups, heads = fields.pop("num_key_value_heads", None), fields.get("num_attention_heads")
    if groups not in (None, heads):
        raise FieldError(
            f"num_key_value_heads is {shown(groups)} and num_attention_heads {shown(heads)}: fewer "
            "key/value heads are not supported; use --arch llama"
        )
    return FIELDS.build(NanoChatConfig, fields)


SPEC = ModelSpec(
    name="nanochat",
    config=NanoChatConfig,
    build=NanoChat,
    presets=PRESETS,
    tasks=("causal_lm",),
    weights={HUGGING_FACE: WEIGHTS},
    model_type="nanochat",
    class_prefix="NanoChat",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
    # Embeddings start ten to fifty times as large as elsewhere.
    training={"embedding_rate": 10.0},
    scaling=CAUSAL,
)
