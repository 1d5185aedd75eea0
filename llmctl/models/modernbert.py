"""ModernBERT: the Transformer encoder as of 2024 (Warner et al. 2024, arXiv:2412.13663).

Notable: rotary positions; pre-norm blocks, of which the first has no norm before its attention, as
the embeddings are normalised; GeGLU; no biases; every third layer is global, the others attend to
64 tokens on each side, with angles of another base. H⁰ = norm(X·E), then per block
x = x + attention(norm(x)); x = x + feed_forward(norm(x)); norm(x) at the end.

A row may hold several texts end to end (packing): ``position_ids`` then start anew at each and
attention stays inside each. There are no segments: the two texts of a pair are told by [SEP].

B batch, T tokens, D width, N heads, H head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.models.config_json import (
    FieldError,
    FieldTable,
    Only,
    Read,
    shown,
    thetas_by_layer_type,
)
from llmctl.models.layers.attention import additive_mask
from llmctl.models.layers.feed_forward import GateActivation, GatedFeedForward
from llmctl.models.layers.initialisation import start_pre_norm
from llmctl.models.layers.kernels import cast_residual_stream
from llmctl.models.layers.local_attention import LocalWindow, RotarySelfAttention, Surroundings
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.rotary import rotary_table
from llmctl.models.scaling import CAUSAL
from llmctl.models.spec import HUGGING_FACE, MOST_LAYERS, Backbone, ModelConfig, ModelSpec
from llmctl.models.weight_map import BOTH, Rename, WeightMap


def _shape(layers: int, width: int, inner: int) -> dict[str, Any]:
    return {"num_layers": layers, "hidden_size": width, "intermediate_size": inner}


PRESETS: dict[str, dict[str, Any]] = {
    # Depths and widths of the small BERTs (Turc et al. 2019).
    "nano": _shape(2, 128, 192),
    "mini": _shape(4, 256, 384),
    "small": _shape(4, 512, 768),
    "medium": _shape(8, 512, 768),
    # Warner et al. 2024, table 4.
    "base": _shape(22, 768, 1152),
    "large": _shape(28, 1024, 2624),
    # Ettin (Weller et al. 2025, arXiv:2507.11412, table 1); its 150m and 400m are base and large.
    "ettin-17m": _shape(7, 256, 384),
    "ettin-32m": _shape(10, 384, 576),
    "ettin-68m": _shape(19, 512, 768),
    "ettin-150m": _shape(22, 768, 1152),
}


class ModernBertConfig(ModelConfig):
    """The shape of a ModernBERT."""

    biases: ClassVar[bool] = False
    pooled_by: ClassVar[Literal["pooler", "transform"]] = "transform"
    layers_differ = True

    num_layers: int = Field(4, ge=1, le=MOST_LAYERS, strict=True)
    """Blocks."""
    hidden_size: int = Field(256, ge=1, strict=True)
    """Width of the hidden states; a multiple of the heads."""
    intermediate_size: int = Field(0, ge=0, strict=True)
    """Width inside the feed-forward network. 0: one and a half times the hidden states'."""
    max_positions: int = Field(8192, ge=8)
    """Tokens that a text may have: the longest context."""
    local_attention: int = Field(128, ge=2)
    """Window of the local layers: a token attends to half as many tokens on each side."""
    global_every: int = Field(3, ge=1)
    """The first layer and every so-manieth after it attend to all tokens. 1: every layer."""
    rope_theta: float = Field(160000.0, gt=0.0)
    """Base of the rotary angles in global layers."""
    local_rope_theta: float = Field(10000.0, gt=0.0)
    """Base of the rotary angles in local layers."""
    activation: GateActivation = "gelu"
    """Activation of the feed-forward network's gate: gelu, silu or relu."""
    head_activation: GateActivation = "gelu"
    """Activation of the transform in the heads: gelu, silu or relu."""
    classifier_pooling: Literal["cls", "mean"] = "mean"
    """What a classifier looks at: [CLS], or the mean of all tokens, as in the published models."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout of embeddings, attention and feed-forward networks."""
    norm_epsilon: float = Field(1e-5, gt=0.0)
    """Term added to the variance in every normalisation, ε."""
    initializer_range: float = Field(0.02, gt=0.0)
    """Standard deviation of fresh weights."""
    tie_embeddings: bool = True
    """Whether the output layer of masked language modelling is the token embedding."""

    @classmethod
    def inner_width(cls, width: int) -> int:
        return 3 * width // 2

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} over model.num_heads {self.num_heads} gives "
                f"heads {self.hidden_size // self.num_heads} wide, and rotary positions need "
                "pairs; take another number of heads"
            )
        return self

    @property
    def radius(self) -> int:
        """Tokens on each side that a token of a local layer attends to."""
        return self.local_attention // 2

    def is_global(self, layer: int) -> bool:
        """Whether a layer, counted from 0, attends to all tokens."""
        return layer % self.global_every == 0

    def attended(self, length: int) -> float:
        window = min(length, 2 * self.radius + 1)
        layers = range(self.num_layers)
        return sum(length if self.is_global(layer) else window for layer in layers)


class ModernBertBlock(nn.Module):
    """One layer: attention and feed-forward, each on its normalised input and added to it."""

    def __init__(self, config: ModernBertConfig, layer: int) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.norm_epsilon
        # The embeddings are normalised already.
        self.norm_1 = nn.LayerNorm(width, eps=epsilon, bias=False) if layer else nn.Identity()
        self.attention = RotarySelfAttention(width, config.num_heads, config.dropout)
        self.norm_2 = nn.LayerNorm(width, eps=epsilon, bias=False)
        self.feed_forward = GatedFeedForward(
            width, config.intermediate_size, config.activation, dropout=config.dropout
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, around: Surroundings, layer: int) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_1(x_BTD), around, layer))
        return x_BTD + self.feed_forward(self.norm_2(x_BTD))


class ModernBert(Backbone):
    """The encoder: token ids to hidden states."""

    kind, ends_normalised = "encoder", True
    config: ModernBertConfig

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.embedding_norm = nn.LayerNorm(width, eps=config.norm_epsilon, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ModernBertBlock(config, n) for n in range(config.num_layers))
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon, bias=False)
        head_size = width // config.num_heads
        for name, theta in (("global", config.rope_theta), ("local", config.local_rope_theta)):
            cos, sin = rotary_table(config.max_positions, head_size, theta)
            self.register_buffer(f"{name}_cos", cos, persistent=False)
            self.register_buffer(f"{name}_sin", sin, persistent=False)
        start_pre_norm(self, config.initializer_range, config.num_layers)

    def forward(
        self,
        input_ids_BT: Tensor,
        segment_ids_BT: Tensor | None = None,
        mask: Tensor | PackedSequences | None = None,
        position_ids_BT: Tensor | None = None,
        with_prompt: bool = False,
    ) -> Tensor:
        """Hidden states (B, T, D) of the last layer, normalised.

        input_ids_BT: int64. segment_ids_BT: as every encoder takes them; a ModernBERT has none.
        mask: bool, (B, T) True at real tokens, or the texts of packed rows; default all.
        position_ids_BT: default 0 … T-1. with_prompt: those of a soft prompt too, in front.
        """
        rows = None
        if virtual := self.virtual_tokens:
            rows = virtual.before(input_ids_BT, mask, position_ids_BT)
            input_ids_BT, mask, position_ids_BT = rows.input_ids_BS, rows.mask, rows.position_ids_BS
        everywhere, near = self._surroundings(input_ids_BT, mask, position_ids_BT)
        x_BTD = self.token_embedding(input_ids_BT)
        if rows is not None:
            x_BTD = rows.virtual.embed(x_BTD)
            everywhere, near = (replace(each, virtual=rows.virtual) for each in (everywhere, near))
        x_BTD = cast_residual_stream(self.dropout(self.embedding_norm(x_BTD)))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, everywhere if self.config.is_global(layer) else near, layer)
        return self.norm(x_BTD) if not rows else rows.of_texts(self.norm(x_BTD), with_prompt)

    def _surroundings(
        self,
        input_ids_BT: Tensor,
        mask: Tensor | PackedSequences | None,
        position_ids_BT: Tensor | None,
    ) -> tuple[Surroundings, Surroundings]:
        """What global layers see, and what local ones do."""
        B, T = input_ids_BT.shape
        radius = self.config.radius
        tables = (self._turned(name, T, position_ids_BT) for name in ("global", "local"))
        (cos, sin), (local_cos, local_sin) = tables
        if isinstance(mask, PackedSequences) and mask.supports_varlen(
            self.config.dropout if self.training else 0.0
        ):
            return (
                Surroundings(cos, sin, packed=mask),
                Surroundings(local_cos, local_sin, packed=mask, radius=radius),
            )
        sequence_ids_BT = added = None
        if isinstance(mask, PackedSequences):
            sequence_ids_BT = mask.sequence_ids_BT
            added = additive_mask(mask.attention_mask()[:, None])
        elif mask is not None:
            # Padding attends to padding, as a window may hold nothing else.
            sequence_ids_BT = mask.int()
            added = additive_mask(mask[:, None, None, :])
        window = LocalWindow.of(sequence_ids_BT, (B, T), radius, input_ids_BT.device)
        return Surroundings(cos, sin, added), Surroundings(local_cos, local_sin, window=window)

    def _turned(self, name: str, T: int, position_ids_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens' angles, for queries and keys and all of their heads."""
        places = slice(T) if position_ids_BT is None else position_ids_BT
        cos, sin = (getattr(self, f"{name}_{part}")[places] for part in ("cos", "sin"))
        return cos.unsqueeze(-2), sin.unsqueeze(-2)


_TRANSFORM = (Rename("transform", "head.dense"), Rename("transform_norm", "head.norm"))
WEIGHTS = WeightMap(
    "a ModernBERT",
    "model.",
    (
        Rename("token_embedding", "model.embeddings.tok_embeddings"),
        Rename("embedding_norm", "model.embeddings.norm"),
        Rename("blocks.{}.norm_1", "model.layers.{}.attn_norm", first=1),
        *(
            Rename(f"blocks.{{}}.{ours}", f"model.layers.{{}}.{theirs}")
            for ours, theirs in {
                "attention.query_key_value": "attn.Wqkv",
                "attention.output": "attn.Wo",
                "norm_2": "mlp_norm",
                "feed_forward.gate_up": "mlp.Wi",
                "feed_forward.contract": "mlp.Wo",
            }.items()
        ),
        Rename("norm", "model.final_norm"),
    ),
    {
        "masked_lm": (
            *_TRANSFORM,
            Rename("output_bias", "decoder.bias", ()),
            Rename("output", "decoder", where="not tie_embeddings"),
        ),
        **dict.fromkeys(
            ("classify", "regress", "tag"), (*_TRANSFORM, Rename("output", "classifier", BOTH))
        ),
    },
)
"""The names of Hugging Face's."""

FULL, SLIDING = "full_attention", "sliding_attention"
THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
"""Fields that had the bases of the angles before ``rope_parameters``."""


def to_hugging_face(config: ModernBertConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    layers = range(config.num_layers)
    thetas = {FULL: config.rope_theta, SLIDING: config.local_rope_theta}
    return {
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_activation": config.activation,
        "max_position_embeddings": config.max_positions,
        "local_attention": config.local_attention,
        # Before version 5 of transformers, and since.
        "global_attn_every_n_layers": config.global_every,
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "layer_types": [FULL if config.is_global(layer) else SLIDING for layer in layers],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        "embedding_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias"), False),
        "norm_eps": config.norm_epsilon,
        "initializer_range": config.initializer_range,
        "decoder_bias": True,
        "classifier_bias": False,
        "classifier_activation": config.head_activation,
        "classifier_pooling": config.classifier_pooling,
        "tie_word_embeddings": config.tie_embeddings,
        # Which transformers takes for those of the published vocabulary where they are left out.
        **dict.fromkeys(f"{role}_token_id" for role in ("bos", "cls", "eos", "pad", "sep")),
    }


_NO_BIASES = Only((None, False), "a ModernBERT with biases there is not supported")
_ACTIVATIONS = {name: name for name in ("gelu", "silu", "relu")}
_SAME_POOLING = {name: name for name in ("cls", "mean")}
FIELDS = FieldTable(
    "a ModernBERT",
    read={
        "vocab_size": Read("vocab_size", int, 50368),
        "hidden_size": Read("hidden_size", int, 768),
        "num_hidden_layers": Read("num_layers", int, 22),
        "num_attention_heads": Read("num_heads", int, 12),
        "intermediate_size": Read("intermediate_size", int, 1152),
        "hidden_activation": Read("activation", str, "gelu", names=_ACTIVATIONS),
        "max_position_embeddings": Read("max_positions", int, 8192),
        "local_attention": Read("local_attention", int, 128),
        "global_attn_every_n_layers": Read("global_every", int, 3),
        "global_rope_theta": Read("rope_theta", float, 160000.0),
        "local_rope_theta": Read("local_rope_theta", float, 10000.0),
        "mlp_dropout": Read("dropout", float, 0.0),
        "norm_eps": Read("norm_epsilon", float, 1e-5),
        "initializer_range": Read("initializer_range", float, 0.02),
        "classifier_activation": Read("head_activation", str, "gelu", names=_ACTIVATIONS),
        "classifier_pooling": Read("classifier_pooling", str, "cls", names=_SAME_POOLING),
        "tie_word_embeddings": Read("tie_embeddings", bool, True),
    },
    only={
        **{f"{part}_bias": _NO_BIASES for part in ("attention", "mlp", "norm", "classifier")},
        "decoder_bias": Only((None, True), "an output layer without a bias is not supported"),
    },
    neutral=frozenset(
        {
            # How it is trained, and by which kernels.
            "deterministic_flash_attn", "embedding_dropout", "initializer_cutoff_factor",
            "reference_compile", "repad_logits_with_grad", "sparse_pred_ignore_index",
            "sparse_prediction",
            # What the published files took over from a BERT's, and no ModernBERT reads.
            "layer_norm_eps", "position_embedding_type",
        }
    ),
)  # fmt: skip
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> ModernBertConfig:
    """The configuration that a Hugging Face config.json describes, in the words of transformers
    before its version 5 or since.

    Raises FieldError for what this ModernBERT does not have.
    """
    fields = dict(fields)
    layer_types, rope = fields.pop("layer_types", None), fields.pop("rope_parameters", None)
    if layer_types is not None:
        fields["global_attn_every_n_layers"] = _global_every(layer_types, fields)
    if rope is not None:
        thetas = thetas_by_layer_type(rope, (FULL, SLIDING))
        fields |= {THETAS[kind]: theta for kind, theta in thetas.items()}
    return FIELDS.build(ModernBertConfig, fields)


def _global_every(layer_types: Any, fields: Mapping[str, Any]) -> int:
    """Every how manieth layer is global, of a list of what each is."""
    if not isinstance(layer_types, list) or not set(map(str, layer_types)) <= {FULL, SLIDING}:
        raise FieldError(f"layer_types is {shown(layer_types)}, not a list of {FULL} and {SLIDING}")
    every = fields.get("global_attn_every_n_layers", 3)
    usual = [every] if isinstance(every, int) and every > 0 else []
    for number in (*usual, *range(1, len(layer_types) + 1)):
        if layer_types == [SLIDING if n % number else FULL for n in range(len(layer_types))]:
            return number
    raise FieldError(
        f"layer_types is {shown(layer_types)}: only the first and every so-manieth layer after it "
        f"can be {FULL}"
    )


SPEC = ModelSpec(
    name="modernbert",
    config=ModernBertConfig,
    build=ModernBert,
    presets=PRESETS,
    tasks=("masked_lm",),
    weights={HUGGING_FACE: WEIGHTS},
    model_type="modernbert",
    class_prefix="ModernBert",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
    # Warner et al. 2024, §2.2: no next sentences, and twice as many hidden tokens.
    objective={"next_sentence": False, "mask_rate": 0.3},
    scaling=replace(CAUSAL, irreducible=0.1468, weights_factor=15.67, tokens_factor=13.15),
)
