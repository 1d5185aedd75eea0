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

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.models.config_json import FieldError, FieldTable, Only, Read, shown
from llmctl.models.decoder import HEADS, Decoder, DecoderConfig, start_decoder
from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.context import Context, context
from llmctl.models.layers.cross_attention import CrossAttention, Source
from llmctl.models.layers.feed_forward import SwiGLU
from llmctl.models.layers.norms import RMSNorm
from llmctl.models.layers.packing import Texts
from llmctl.models.layers.rotary import rotary_table, rotate
from llmctl.models.scaling import CAUSAL, ScalingLaw
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import Fuse, Rename, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    # The sizes of llama2.c's models of TinyStories, and TinyLlama (Zhang et al. 2024).
    "nano": {
        "num_layers": 5,
        "hidden_size": 64,
        "num_heads": 8,
        "num_kv_heads": 4,
        "intermediate_size": 172,
    },
    "mini": {"num_layers": 6, "hidden_size": 288, "num_heads": 6},
    "small": {"num_layers": 8, "hidden_size": 512, "num_heads": 8},
    "medium": {"num_layers": 12, "hidden_size": 768, "num_heads": 12},
    "large": {
        "num_layers": 22,
        "hidden_size": 2048,
        "num_heads": 32,
        "num_kv_heads": 4,
        "intermediate_size": 5632,
    },
}

QWEN2_LARGE: dict[str, Any] = {
    # Qwen2-0.5B's (Yang et al. 2024, table 1).
    "num_layers": 24,
    "hidden_size": 896,
    "num_heads": 14,
    "num_kv_heads": 2,
    "intermediate_size": 4864,
    "tie_embeddings": True,
}
QWEN3_PRESETS: dict[str, dict[str, Any]] = {
    # Llama's with heads twice as wide, as Qwen3-0.6B's, which is the largest.
    **{
        name: {**shape, "head_size": 2 * shape["hidden_size"] // shape["num_heads"]}
        for name, shape in PRESETS.items()
    },
    "large": {
        "num_layers": 28,
        "hidden_size": 1024,
        "num_heads": 16,
        "num_kv_heads": 8,
        "intermediate_size": 3072,
        "tie_embeddings": True,
    },
}

INNER_STEP = 32
"""The feed-forward width is rounded up to a multiple of this, which kernels like."""


class LlamaConfig(DecoderConfig):
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
    rope_theta: float = Field(10000.0, gt=0.0)
    """Base of the rotary angles; more for longer contexts."""
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
    sliding_window: int = Field(0, ge=0)
    """Tokens that a token attends to, itself the last of them. 0: all before it."""

    def window(self) -> int:
        return self.sliding_window


class Attention(CausalSelfAttention):
    """Self-attention with rotary positions, behind a normalisation where there is one."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(
            config.hidden_size,
            config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_size=config.head_size,
            bias=False,
            qkv_bias=config.qkv_bias,
            dropout=0.0,
        )
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_size, config.norm_epsilon)
            self.key_norm = RMSNorm(config.head_size, config.norm_epsilon)

    def place(self, q_BNTH: Tensor, k_BKTH: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.cos is not None
        assert context.sin is not None
        return (
            rotate(self.query_norm(q_BNTH), context.cos, context.sin),
            rotate(self.key_norm(k_BKTH), context.cos, context.sin),
        )


class Block(nn.Module):
    """One layer: attention and feed-forward, each on its normalised input and added to it."""

    def __init__(self, config: LlamaConfig, *, cross_attention: bool) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config)
        self.cross_attention = (
            CrossAttention(
                config.hidden_size,
                config.num_heads,
                norm=RMSNorm(config.hidden_size, config.norm_epsilon),
                bias=False,
            )
            if cross_attention
            else None
        )
        self.norm_2 = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.feed_forward = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm_1(x_BTD), context, layer)
        if self.cross_attention is not None and context.source is not None:
            x_BTD = x_BTD + self.cross_attention(x_BTD, context.source, layer)
        return x_BTD + self.feed_forward(self.norm_2(x_BTD))


class Llama(Decoder):
    """The decoder: token ids to hidden states."""

    config: LlamaConfig
    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig, *, cross_attention: bool = False) -> None:
        """cross_attention: whether the blocks attend to a source too."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(
            Block(config, cross_attention=cross_attention) for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        cos, sin = rotary_table(config.max_positions, config.head_size, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        start_decoder(self, config)

    def forward(
        self,
        input_ids_BT: Tensor,
        mask: Tensor | Texts | None = None,
        position_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        source: Source | None = None,
    ) -> Tensor:
        window = self.config.window()
        here = context(input_ids_BT, mask, position_ids_BT, cache, source, window=window)
        # The heads' dimension, where each row has positions of its own.
        cos, sin = (table[here.position_ids].unsqueeze(-3) for table in (self.cos, self.sin))
        here = replace(here, cos=cos, sin=sin)
        x_BTD = here.started(self.token_embedding(input_ids_BT))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, here, layer)
        if cache is not None:
            cache.advance(input_ids_BT.shape[1])
        return self.norm(x_BTD)


_RULES = (
    Rename("token_embedding", "model.embed_tokens"),
    Rename("norm", "model.norm"),
    Rename("blocks.{}.norm_1", "model.layers.{}.input_layernorm"),
    Fuse(
        "blocks.{}.attention.query_key_value",
        tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        shares=("num_heads", "num_kv_heads", "num_kv_heads"),
    ),
    Fuse(
        "blocks.{}.attention.query_key_value",
        tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        parts=("bias",),
        where="qkv_bias",
        shares=("num_heads", "num_kv_heads", "num_kv_heads"),
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


_BIASES = {"attention_bias": False, "mlp_bias": False}


def to_hugging_face(config: LlamaConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    kind = "qwen3" if config.qk_norm else config.model_type
    return {
        "model_type": kind,
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
        "rope_theta": config.rope_theta,  # where transformers looked before version 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        **(_BIASES if kind in ("llama", "qwen3") else {}),
        **({"sliding_window": config.window() or None} if kind == "mistral" else {}),
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
}
_ONLY = {
    "hidden_act": Only(("silu",)),
    "attention_bias": Only((None, False), "attention with biases is not supported"),
    "mlp_bias": Only((None, False), "a feed-forward network with biases is not supported"),
}
_NO_WINDOW = {
    "use_sliding_window": Only((None, False), "attention in a window is not supported"),
}
_WINDOWS = frozenset({"is_decoder", "max_window_layers", "sliding_window"})
"""A Qwen's, which there are none of without use_sliding_window."""
FIELDS = {
    "llama": FieldTable(
        "a Llama",
        read=_COMMON,
        only={**_ONLY, "rope_interleaved": Only((None, False))},
        neutral=frozenset({"is_decoder"}),
        rotary=True,
    ),
    "qwen2": FieldTable(
        "a Qwen2",
        read={**_COMMON, "num_key_value_heads": Read("num_kv_heads", int, 32, null=0)},
        only={"hidden_act": Only(("silu",)), **_NO_WINDOW},
        neutral=_WINDOWS,
        rotary=True,
    ),
    "qwen3": FieldTable(
        "a Qwen3",
        read={
            **_COMMON,
            "num_key_value_heads": Read("num_kv_heads", int, 32, null=0),
            "head_dim": Read("head_size", int, 128),
        },
        only={**_ONLY, **_NO_WINDOW},
        neutral=_WINDOWS,
        rotary=True,
    ),
    "mistral": FieldTable(
        "a Mistral",
        read={
            **_COMMON,
            "num_key_value_heads": Read("num_kv_heads", int, 8, null=0),
            "sliding_window": Read("sliding_window", int, 4096, null=0),
        },
        only=_ONLY,
        neutral=frozenset({"is_decoder"}),
        rotary=True,
    ),
}
"""What becomes of the fields of a Hugging Face config.json, by its model_type."""


def from_hugging_face(kind: type[LlamaConfig], fields: Mapping[str, Any]) -> LlamaConfig:
    """The configuration of a kind that a Hugging Face config.json describes.

    Raises FieldError for what such a model does not have here.
    """
    fields = dict(fields)
    layers = fields.pop("layer_types", None) if "qwen" in kind.model_type else None
    if layers is not None and (
        not isinstance(layers, list) or any(layer != "full_attention" for layer in layers)
    ):
        raise FieldError(f"layer_types is {shown(layers)}: only full_attention is supported")
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
        tasks=("causal_lm",),
        weights={HUGGING_FACE: WeightMap(FIELDS[kind].what, "model.", _RULES, HEADS)},
        model_type=kind,
        class_prefix=class_prefix,
        to_hugging_face=to_hugging_face,
        from_hugging_face=partial(from_hugging_face, config),
        scaling=scaling,
    )


SPECS = (
    _spec(LlamaConfig, "Llama", scaling=replace(CAUSAL, tokens_factor=9.237)),
    _spec(Qwen2Config, "Qwen2", {**PRESETS, "large": QWEN2_LARGE}),
    _spec(Qwen3Config, "Qwen3", QWEN3_PRESETS),
    _spec(MistralConfig, "Mistral"),
)
