"""Llama: the decoder of most open models (Touvron et al. 2023, arXiv:2302.13971), and its kin.

Notable: RMSNorm before each part; rotary positions; SwiGLU; no biases; fewer key/value heads than
heads (Ainslie et al. 2023). x = x + attention(norm(x)); x = x + W₃(silu(x W₁) ⊙ x W₂).

Qwen2 (Yang et al. 2024, arXiv:2407.10671) has biases on queries, keys and values. Qwen3 (Yang et
al. 2025, arXiv:2505.09388) normalises queries and keys before they are turned (Dehghani et al.
2023), and its heads are as wide as they like. Mistral (Jiang et al. 2023, arXiv:2310.06825) may
look back through a window only.

B batch, T tokens, D width, N heads, K key/value heads, H head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from llmctl.models.config_json import FieldTable, Only, Read, check_full_attention
from llmctl.models.decoder import TWO_WAY_HEADS, Block, RotaryDecoder, start_decoder
from llmctl.models.layers.cross_attention import CrossAttention
from llmctl.models.layers.feed_forward import SwiGLU
from llmctl.models.layers.norms import RMSNorm
from llmctl.models.layers.rotary import rotary_table
from llmctl.models.layers.rotary_attention import LlamaAttention
from llmctl.models.rope_config import RopeConfig
from llmctl.models.scaling import CAUSAL, ScalingLaw
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import Fuse, Rename, WeightMap


def _shape(layers: int, width: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    return {
        "num_layers": layers, "hidden_size": width, "num_heads": heads, "num_kv_heads": kv_heads,
        "intermediate_size": inner,
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    # The sizes of llama2.c's models of TinyStories, and TinyLlama (Zhang et al. 2024).
    "nano": _shape(5, 64, 8, 4, 172),
    "mini": {"num_layers": 6, "hidden_size": 288, "num_heads": 6},
    "small": {"num_layers": 8, "hidden_size": 512, "num_heads": 8},
    "medium": {"num_layers": 12, "hidden_size": 768, "num_heads": 12},
    "large": _shape(22, 2048, 32, 4, 5632),
}
QWEN2_PRESETS = {
    # Llama's, and Qwen2-0.5B (Yang et al. 2024, table 1).
    **PRESETS,
    "large": {**_shape(24, 896, 14, 2, 4864), "tie_embeddings": True},
}
QWEN3_PRESETS = {
    # Llama's with heads twice as wide, as those of Qwen3-0.6B (Yang et al. 2025, table 1).
    **{
        name: {**shape, "head_size": 2 * shape["hidden_size"] // shape["num_heads"]}
        for name, shape in PRESETS.items()
    },
    "large": {**_shape(28, 1024, 16, 8, 3072), "tie_embeddings": True},
}

INNER_STEP = 32
"""The feed-forward width is rounded up to a multiple of this, which kernels like."""


class LlamaConfig(RopeConfig):
    """The shape of a Llama or, with ``qk_norm``, of a Qwen3."""

    model_type: ClassVar[str] = "llama"
    qkv_bias: ClassVar[bool] = False
    """Whether queries, keys and values have biases."""

    num_kv_heads: int = Field(0, ge=0, strict=True)
    """Heads of keys and values, which the query heads share. 0: as many as heads."""
    head_size: int = Field(0, ge=0, strict=True)
    """Width of a head; even. 0: the width divided by the heads."""
    qk_norm: bool = False
    """Normalise each head's queries and keys: training bears a higher learning rate."""
    norm_epsilon: float = Field(1e-5, gt=0.0)
    """Term added to the mean square in every normalisation, ε."""

    @classmethod
    def inner_width(cls, width: int) -> int:
        # Three matrices instead of two: 8/3 of the width keeps their weights as many.
        return -(-8 * width // (3 * INNER_STEP)) * INNER_STEP

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        values = super()._fill_in(values)  # type: ignore[operator]  # pydantic's decorator
        if not isinstance(values, dict):
            return values
        width, heads = values.get("hidden_size"), values.get("num_heads")
        if isinstance(heads, int) and heads > 0:
            values["num_kv_heads"] = values.get("num_kv_heads") or heads
            if isinstance(width, int):
                values["head_size"] = values.get("head_size") or cls.head_width(width, heads)
        return values

    @classmethod
    def head_width(cls, width: int, heads: int) -> int:
        """The heads' width where none is given."""
        return width // heads

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} is not divisible by model.num_kv_heads "
                f"{self.num_kv_heads}; try {self.num_heads}"
            )
        if self.head_size % 2:
            raise ValueError(
                f"model.head_size {self.head_size} is odd, and rotary positions need pairs; try "
                f"{self.head_size + 1}"
            )
        return self

    def kv_shape(self) -> tuple[int, int]:
        return self.num_kv_heads, self.head_size

    def own_fields(self) -> dict[str, Any]:
        """The fields of config.json that not all of its kin have."""
        return {"attention_bias": False, "mlp_bias": False}

    @property
    def attention_width(self) -> int:
        return self.num_heads * self.head_size


class Qwen2Config(LlamaConfig):
    """The shape of a Qwen2."""

    model_type = "qwen2"
    qkv_bias = True
    qk_norm: Literal[False] = False
    """Normalise each head's queries and keys, which a Qwen2 does not."""
    norm_epsilon: float = Field(1e-6, gt=0.0)
    """Term added to the mean square in every normalisation, ε."""

    def own_fields(self) -> dict[str, Any]:
        return {}


class Qwen3Config(LlamaConfig):
    """The shape of a Qwen3."""

    model_type = "qwen3"
    head_size: int = Field(0, ge=0, strict=True)
    """Width of a head; even. 0: 128, whatever the width."""
    qk_norm: Literal[True] = True
    """Normalise each head's queries and keys: training bears a higher learning rate."""
    norm_epsilon: float = Field(1e-6, gt=0.0)
    """Term added to the mean square in every normalisation, ε."""

    @classmethod
    def head_width(cls, width: int, heads: int) -> int:
        return 128


class MistralConfig(LlamaConfig):
    """The shape of a Mistral."""

    model_type = "mistral"
    qk_norm: Literal[False] = False
    """Normalise each head's queries and keys, which a Mistral does not."""
    bidirectional: Literal[False] = False
    """Whether each token sees those behind it too, which a Mistral's, with its window, don't."""
    sliding_window: int = Field(0, ge=0)
    """Tokens that a token attends to, itself the last of them. 0: all before it."""

    def window(self) -> int:
        return self.sliding_window

    def own_fields(self) -> dict[str, Any]:
        return {"sliding_window": self.sliding_window or None}


class Llama(RotaryDecoder):
    """The decoder: token ids to hidden states."""

    config: LlamaConfig

    def __init__(self, config: LlamaConfig, *, cross_attention: bool = False) -> None:
        """cross_attention: whether the blocks attend to a source too."""
        super().__init__()
        self.config = config
        width = config.hidden_size
        norm = partial(RMSNorm, width, config.norm_epsilon)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(
            Block(
                norm,
                LlamaAttention(config, layer),
                CrossAttention(width, config.num_heads, norm=norm(), bias=False)
                if cross_attention
                else None,
                SwiGLU(width, config.intermediate_size),
            )
            for layer in range(config.num_layers)
        )
        self.norm = norm()
        positions, scaling = config.max_positions, config.rope_scaling()
        self.turn_by(*rotary_table(positions, config.head_size, config.rope_theta, scaling))
        start_decoder(self, config)


_RULES = (
    Rename("token_embedding", "model.embed_tokens"),
    Rename("norm", "model.norm"),
    Rename("blocks.{}.norm_1", "model.layers.{}.input_layernorm"),
    *(
        Fuse(
            "blocks.{}.attention.query_key_value",
            tuple(f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkv"),
            parts=(part,),
            where=where,
            shares=("num_heads", "num_kv_heads", "num_kv_heads"),
        )
        for part, where in (("weight", ""), ("bias", "qkv_bias"))
    ),
    Rename("blocks.{}.attention.query_norm", "model.layers.{}.self_attn.q_norm", where="qk_norm"),
    Rename("blocks.{}.attention.key_norm", "model.layers.{}.self_attn.k_norm", where="qk_norm"),
    Rename("blocks.{}.attention.output", "model.layers.{}.self_attn.o_proj"),
    Rename("blocks.{}.norm_2", "model.layers.{}.post_attention_layernorm"),
    Fuse(
        "blocks.{}.feed_forward.gate_up",
        tuple(f"model.layers.{{}}.mlp.{part}_proj" for part in ("gate", "up")),
    ),
    Rename("blocks.{}.feed_forward.contract", "model.layers.{}.mlp.down_proj"),
)
"""The names of Hugging Face's."""


def to_hugging_face(config: LlamaConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        "model_type": "qwen3" if config.qk_norm else config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_epsilon,
        **config.rope_fields(),
        "tie_word_embeddings": config.tie_embeddings,
        **({"is_causal": False} if config.bidirectional else {}),
        **config.own_fields(),
    }


_COMMON = {
    "vocab_size": Read("vocab_size", int),
    "num_hidden_layers": Read("num_layers", int),
    "hidden_size": Read("hidden_size", int),
    "num_attention_heads": Read("num_heads", int),
    "num_key_value_heads": Read("num_kv_heads", int, None, null=0),
    "head_dim": Read("head_size", int, None, null=0),
    "intermediate_size": Read("intermediate_size", int),
    "max_position_embeddings": Read("max_positions", int),
    "rms_norm_eps": Read("norm_epsilon", float, 1e-6),
    "initializer_range": Read("initializer_range", float, 0.02),
    "tie_word_embeddings": Read("tie_embeddings", bool, False),
    "is_causal": Read("bidirectional", bool, True, names={True: False, False: True}),
}
ONLY = {
    "hidden_act": Only(("silu",)),
    "attention_bias": Only((None, False), "attention with biases is not supported"),
    "mlp_bias": Only((None, False), "a feed-forward network with biases is not supported"),
}
NO_WINDOW = "attention in a window is not supported"
_NO_WINDOW = {"use_sliding_window": Only((None, False), NO_WINDOW)}
_QWEN_WINDOW = ("max_window_layers", "sliding_window")
"""What there are none of without use_sliding_window."""


def field_table(
    what: str,
    read: Mapping[str, Read],
    only: Mapping[str, Only] = ONLY,
    neutral: Iterable[str] = (),
) -> FieldTable:
    """The table of a kin's fields. read, only: beside what all have."""
    neutral = frozenset({"is_decoder", *neutral})
    return FieldTable(what, {**_COMMON, **read}, only, neutral, rotary=True, scaled=True)


FIELDS = {
    "llama": field_table("a Llama", {}, {**ONLY, "rope_interleaved": Only((None, False))}),
    "qwen2": field_table(
        "a Qwen2",
        {"num_key_value_heads": Read("num_kv_heads", int, 32, null=0)},
        {"hidden_act": ONLY["hidden_act"], **_NO_WINDOW},
        _QWEN_WINDOW,
    ),
    "qwen3": field_table(
        "a Qwen3",
        {
            "num_key_value_heads": Read("num_kv_heads", int, 32, null=0),
            "head_dim": Read("head_size", int, 128),
        },
        {**ONLY, **_NO_WINDOW},
        _QWEN_WINDOW,
    ),
    "mistral": field_table(
        "a Mistral",
        {
            "num_key_value_heads": Read("num_kv_heads", int, 8, null=0),
            "sliding_window": Read("sliding_window", int, 4096, null=0),
        },
    ),
}
"""What becomes of the fields of a Hugging Face config.json, by its model_type."""


def from_hugging_face(kind: type[LlamaConfig], fields: Mapping[str, Any]) -> LlamaConfig:
    """The configuration of a kind that a Hugging Face config.json describes.

    Raises FieldError for what such a model does not have here.
    """
    fields = dict(fields)
    if "qwen" in kind.model_type:
        check_full_attention(fields.pop("layer_types", None))
    return FIELDS[kind.model_type].build(kind, fields)


def _spec(
    config: type[LlamaConfig],
    class_prefix: str,
    presets: Mapping[str, Mapping[str, Any]] = PRESETS,
    scaling: ScalingLaw | None = None,
) -> ModelSpec:
    kind = config.model_type
    return ModelSpec(
        name=kind,
        config=config,
        build=Llama,
        presets=presets,
        tasks=("causal_lm",) if config is MistralConfig else ("causal_lm", "gpt_bert"),
        weights={HUGGING_FACE: WeightMap(FIELDS[kind].what, "model.", _RULES, TWO_WAY_HEADS)},
        model_type=kind,
        class_prefix=class_prefix,
        to_hugging_face=to_hugging_face,
        from_hugging_face=partial(from_hugging_face, config),
        scaling=scaling,
    )


SPECS = (
    _spec(LlamaConfig, "Llama", scaling=replace(CAUSAL, tokens_factor=9.237)),
    _spec(Qwen2Config, "Qwen2", QWEN2_PRESETS),
    _spec(Qwen3Config, "Qwen3", QWEN3_PRESETS),
    _spec(MistralConfig, "Mistral"),
)
