"""Gemma 3's text model (Gemma Team 2025, arXiv:2503.19786).

Notable: the embeddings are multiplied by √D; norms before and after each part, with gains 1 + w;
queries and keys normalised; GeGLU; five of six layers look back through a window, and turn by
angles of another base than the sixth, which sees everything.
x = x + norm(attention(norm(x))); x = x + norm(feed_forward(norm(x))).

Left out: pictures, EmbeddingGemma's attention to both sides, and Gemma 2's caps on attention.

B batch, T tokens, D width, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.models.config_json import FieldError, FieldTable, Only, Read, shown
from llmctl.models.decoder import HEAD_NAMES, RotaryDecoder, start_decoder, turned
from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.context import Context
from llmctl.models.layers.cross_attention import CrossAttention
from llmctl.models.layers.feed_forward import Activation, GatedFeedForward
from llmctl.models.layers.norms import ShiftedRMSNorm
from llmctl.models.layers.rotary import rotary_table, rotate
from llmctl.models.llama import LlamaConfig
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import Fuse, Rename, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    # Llama's sizes, with a window of half the shortest context.
    "nano": {"num_layers": 6, "hidden_size": 64, "num_heads": 4, "num_kv_heads": 1},
    "mini": {"num_layers": 6, "hidden_size": 256, "num_heads": 4, "num_kv_heads": 1},
    "small": {"num_layers": 12, "hidden_size": 512, "num_heads": 4, "num_kv_heads": 1},
    # Gemma 3 270M and 1B, by their config.json.
    "medium": {
        "num_layers": 18, "hidden_size": 640, "num_heads": 4, "num_kv_heads": 1, "head_size": 256,
        "intermediate_size": 2048,
    },
    "large": {
        "num_layers": 26, "hidden_size": 1152, "num_heads": 4, "num_kv_heads": 1, "head_size": 256,
        "intermediate_size": 6912,
    },
}  # fmt: skip
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


class Gemma3Config(LlamaConfig):
    """The shape of a Gemma 3."""

    model_type: ClassVar[str] = "gemma3_text"
    layers_differ = True

    qk_norm: Literal[True] = True
    """Normalise each head's queries and keys: training bears a higher learning rate."""
    bidirectional: Literal[False] = False
    """Whether each token sees those behind it too, which a Gemma's, with its window, don't."""
    rope_theta: float = Field(GLOBAL_THETA, gt=0.0)
    """Base of the rotary angles in the layers that see all tokens before."""
    local_rope_theta: float = Field(LOCAL_THETA, gt=0.0)
    """Base of the rotary angles in the layers with a window; never scaled."""
    sliding_window: int = Field(512, ge=1)
    """Tokens that a token of a local layer attends to, itself the last of them."""
    global_every: int = Field(6, ge=1, strict=True)
    """Every so-manieth layer attends to all tokens before."""
    query_scalar: float = Field(0.0, ge=0.0)
    """Attention's scores are divided by the root of it. 0: the heads' width."""
    activation: Activation = "gelu_tanh"
    """Activation of the feed-forward network's gate: gelu, gelu_tanh, relu or relu2."""
    logit_cap: float = Field(0.0, ge=0.0)
    """Logits z become cap · tanh(z / cap); 0: they stay."""
    norm_epsilon: float = Field(1e-6, gt=0.0)
    """Term added to the mean square in every normalisation, ε."""
    tie_embeddings: bool = True
    """Whether the output layer is the token embedding."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        values = super()._fill_in(values)  # type: ignore[operator]  # pydantic's decorator
        if isinstance(values, dict):
            values["query_scalar"] = values.get("query_scalar") or values.get("head_size", 0)
        return values

    def window(self) -> int:
        return self.sliding_window

    def is_global(self, layer: int) -> bool:
        """Whether a layer, counted from 0, attends to all tokens before."""
        return (layer + 1) % self.global_every == 0

    def wide_layers(self) -> frozenset[int]:
        return frozenset(filter(self.is_global, range(self.num_layers)))

    def output_cap(self) -> float | None:
        return self.logit_cap or None

    def attended(self, length: int) -> float:
        wide, near = len(self.wide_layers()), min(length, self.sliding_window)
        return wide * length + (self.num_layers - wide) * near


class ScaledEmbedding(nn.Embedding):
    """Token embeddings multiplied by √D; as an output layer they are not."""

    @property
    def factor(self) -> float:
        """√D, rounded as the weights are, as it was in training."""
        return torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype).item()

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        return super().forward(input_ids_BT) * self.factor


class Gemma3Attention(CausalSelfAttention):
    """Self-attention, its queries and keys normalised and then turned."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(
            config.hidden_size,
            config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_size=config.head_size,
            bias=False,
            dropout=0.0,
            scale=config.query_scalar**-0.5,
        )
        self.query_norm = ShiftedRMSNorm(config.head_size, config.norm_epsilon)
        self.key_norm = ShiftedRMSNorm(config.head_size, config.norm_epsilon)

    def apply_positions(
        self, q_BNTH: Tensor, k_BKTH: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        assert context.cos is not None
        assert context.sin is not None
        return (
            rotate(self.query_norm(q_BNTH), context.cos, context.sin),
            rotate(self.key_norm(k_BKTH), context.cos, context.sin),
        )


class Gemma3Block(nn.Module):
    """One layer: attention and feed-forward, what goes in and what comes out normalised."""

    def __init__(self, config: Gemma3Config, layer: int, cross_attention: bool) -> None:
        super().__init__()
        width = config.hidden_size
        norm = partial(ShiftedRMSNorm, width, config.norm_epsilon)
        self.is_global = config.is_global(layer)
        self.norm_1, self.norm_after_1 = norm(), norm()
        self.attention = Gemma3Attention(config)
        self.cross_attention = (
            CrossAttention(width, config.num_heads, norm=norm(), bias=False)
            if cross_attention
            else None
        )
        self.norm_2, self.norm_after_2 = norm(), norm()
        self.feed_forward = GatedFeedForward(width, config.intermediate_size, config.activation)

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        if self.is_global:
            assert context.wide is not None
            context = context.wide
        x_BTD = x_BTD + self.norm_after_1(self.attention(self.norm_1(x_BTD), context, layer))
        if self.cross_attention is not None and context.source is not None:
            x_BTD = x_BTD + self.cross_attention(x_BTD, context.source, layer)
        return x_BTD + self.norm_after_2(self.feed_forward(self.norm_2(x_BTD)))


class Gemma3(RotaryDecoder):
    """The decoder: token ids to hidden states."""

    config: Gemma3Config
    local_cos: Tensor
    local_sin: Tensor

    def __init__(self, config: Gemma3Config, *, cross_attention: bool = False) -> None:
        """cross_attention: whether the blocks attend to a source too."""
        super().__init__()
        self.config = config
        width, positions, size = config.hidden_size, config.max_positions, config.head_size
        self.token_embedding = ScaledEmbedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(
            Gemma3Block(config, layer, cross_attention) for layer in range(config.num_layers)
        )
        self.norm = ShiftedRMSNorm(width, config.norm_epsilon)
        self.turn_by(*rotary_table(positions, size, config.rope_theta, config.rope_scaling()))
        cos, sin = rotary_table(positions, size, config.local_rope_theta)
        self.register_buffer("local_cos", cos, persistent=False)
        self.register_buffer("local_sin", sin, persistent=False)
        start_decoder(self, config)

    def embed(self, input_ids_BT: Tensor, context: Context) -> tuple[Tensor, Context]:
        x_BTD, wide = super().embed(input_ids_BT, context)
        near = turned(context, self.local_cos, self.local_sin)
        if context.wide is None:
            return x_BTD, near
        return x_BTD, replace(near, wide=replace(context.wide, cos=wide.cos, sin=wide.sin))


_GEMMA_RULES = (
    Rename("token_embedding", "model.embed_tokens"),
    Rename("norm", "model.norm"),
    Fuse(
        "blocks.{}.attention.query_key_value",
        tuple(f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkv"),
        shares=("num_heads", "num_kv_heads", "num_kv_heads"),
    ),
    Fuse(
        "blocks.{}.feed_forward.gate_up",
        tuple(f"model.layers.{{}}.mlp.{part}_proj" for part in ("gate", "up")),
    ),
    *(
        Rename(f"blocks.{{}}.{ours}", f"model.layers.{{}}.{theirs}")
        for ours, theirs in {
            "norm_1": "input_layernorm",
            "attention.query_norm": "self_attn.q_norm",
            "attention.key_norm": "self_attn.k_norm",
            "attention.output": "self_attn.o_proj",
            "norm_after_1": "post_attention_layernorm",
            "norm_2": "pre_feedforward_layernorm",
            "feed_forward.contract": "mlp.down_proj",
            "norm_after_2": "post_feedforward_layernorm",
        }.items()
    ),
)
"""The names of Hugging Face's."""

FULL, SLIDING = "full_attention", "sliding_attention"
_GATE_NAMES = {"gelu_tanh": "gelu_pytorch_tanh"}
"""What Hugging Face calls activations, where it isn't as here."""
PUBLISHED_PATTERN = 6


def to_hugging_face(config: Gemma3Config) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    rope = config.rope_fields()
    layers = range(config.num_layers)
    return {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_activation": _GATE_NAMES.get(config.activation, config.activation),
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_epsilon,
        "query_pre_attn_scalar": _whole(config.query_scalar),
        "sliding_window": config.sliding_window,
        "sliding_window_pattern": config.global_every,  # before version 5 of transformers
        "layer_types": [FULL if config.is_global(layer) else SLIDING for layer in layers],
        "rope_parameters": {
            FULL: rope["rope_parameters"],
            SLIDING: {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.local_rope_theta,
        **({"rope_scaling": rope["rope_scaling"]} if "rope_scaling" in rope else {}),
        "attention_bias": False,
        "final_logit_softcapping": config.logit_cap or None,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number


FIELDS = FieldTable(
    "a Gemma 3",
    read={
        "vocab_size": Read("vocab_size", int, 262_208),
        "hidden_size": Read("hidden_size", int, 2304),
        "intermediate_size": Read("intermediate_size", int, 9216),
        "num_hidden_layers": Read("num_layers", int, 26),
        "num_attention_heads": Read("num_heads", int, 8),
        "num_key_value_heads": Read("num_kv_heads", int, 4),
        "head_dim": Read("head_size", int, 256),
        "hidden_activation": Read(
            "activation", str, "gelu_pytorch_tanh",
            names={"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu",
                   "relu": "relu", "relu2": "relu2"},
        ),
        "max_position_embeddings": Read("max_positions", int, 131_072),
        "initializer_range": Read("initializer_range", float, 0.02),
        "rms_norm_eps": Read("norm_epsilon", float, 1e-6),
        "query_pre_attn_scalar": Read("query_scalar", float, 256),
        "sliding_window": Read("sliding_window", int, 4096),
        "sliding_window_pattern": Read("global_every", int, PUBLISHED_PATTERN),
        "rope_local_base_freq": Read("local_rope_theta", float, LOCAL_THETA),
        "final_logit_softcapping": Read("logit_cap", float, None, null=0.0),
        "tie_word_embeddings": Read("tie_embeddings", bool, True),
    },
    only={
        "attention_bias": Only((None, False), "attention with biases is not supported"),
        "attn_logit_softcapping": Only((None,), "scores of attention can't be capped"),
        "use_bidirectional_attention": Only(
            (None, False), "attention to both sides is not supported"
        ),
        "is_causal": Only((None, True), "attention to both sides is not supported"),
    },
    # cache_implementation: how transformers keeps keys and values. The older files repeat the
    # activation, which no version has read.
    neutral=frozenset({"is_decoder", "cache_implementation", "hidden_act"}),
    aliases={"_sliding_window_pattern": "sliding_window_pattern"},
    rotary=True,
    scaled=True,
)  # fmt: skip
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> Gemma3Config:
    """The configuration that a Hugging Face config.json describes, in the words of transformers
    before its version 5 or since.

    Raises FieldError for what a Gemma 3 does not have here.
    """
    fields = {"rope_theta": GLOBAL_THETA, **fields}
    layer_types, rope = fields.pop("layer_types", None), fields.pop("rope_parameters", None)
    if layer_types is not None:
        for name in FIELDS.aliases:  # the list is what counts
            fields.pop(name, None)
        fields["sliding_window_pattern"] = _global_every(layer_types, fields)
    if rope is not None:
        if not isinstance(rope, dict) or not rope.keys() <= {FULL, SLIDING}:
            raise FieldError(
                f"rope_parameters is {shown(rope)}, not an object by {FULL} and {SLIDING}"
            )
        for kind, angles in rope.items():
            if not isinstance(angles, dict | None):
                raise FieldError(f"rope_parameters.{kind} is {shown(angles)}, not an object")
        near = dict(rope.get(SLIDING) or {})
        fields["rope_local_base_freq"] = near.pop(
            "rope_theta", fields.get("rope_local_base_freq", LOCAL_THETA)
        )
        if any(value not in (None, "default") for value in near.values()):
            raise FieldError(
                f"rope_parameters.{SLIDING} is {shown(rope[SLIDING])}: only plain rotary positions "
                "are known there"
            )
        # Where both dialects speak, transformers takes the older one's scaling.
        older = fields.pop("rope_scaling", None) or {}
        fields["rope_parameters"] = {**(rope.get(FULL) or {}), **older}
    return FIELDS.build(Gemma3Config, fields)


def _global_every(layer_types: Any, fields: Mapping[str, Any]) -> int:
    """Every how manieth layer sees all before it, of a list of what each is."""
    if not isinstance(layer_types, list) or not set(map(str, layer_types)) <= {FULL, SLIDING}:
        raise FieldError(f"layer_types is {shown(layer_types)}, not a list of {FULL} and {SLIDING}")
    count = len(layer_types)
    usual = fields.get("sliding_window_pattern", PUBLISHED_PATTERN)
    usual = [usual] if isinstance(usual, int) and usual > 0 else []
    for every in (*usual, *range(1, count + 2)):
        if layer_types == [SLIDING if (n + 1) % every else FULL for n in range(count)]:
            return every
    raise FieldError(
        f"layer_types is {shown(layer_types)}: only every so-manieth layer can be {FULL}"
    )


SPEC = ModelSpec(
    name="gemma3",
    config=Gemma3Config,
    build=Gemma3,
    presets=PRESETS,
    tasks=("causal_lm",),
    weights={HUGGING_FACE: WeightMap(FIELDS.what, "model.", _GEMMA_RULES, HEAD_NAMES)},
    model_type="gemma3_text",
    class_prefix="Gemma3",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
)
