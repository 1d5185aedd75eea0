"""T5: an encoder–decoder for texts to texts (Raffel et al. 2020, "Exploring the Limits of Transfer
Learning with a Unified Text-to-Text Transformer").

Notable: positions are a learned bias of attention's scores by distance, the same for all layers of
a stack; scores aren't scaled, which the weights' start makes up for; RMSNorm before each part and
behind each stack; no biases. Version 1.0 has ReLU, and its output layer is the token embedding, to
which hidden states come scaled by 1 / √d; version 1.1 has a gated GELU and an output layer of its
own (Shazeer 2020). Per block, with cross-attention in the decoder alone,
x = x + attention(norm(x)); x = x + cross_attention(norm(x), H); x = x + feed_forward(norm(x)).

B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.models.config_json import (
    ACTIVATIONS_BY_NAME,
    FieldError,
    FieldTable,
    Only,
    Read,
    shown,
)
from llmctl.models.decoder import Block
from llmctl.models.encoder_decoder import (
    EncoderDecoder,
    EncoderDecoderConfig,
    Stack,
    check_shared,
    differs,
    own_number,
)
from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.context import Context
from llmctl.models.layers.cross_attention import CrossAttention
from llmctl.models.layers.feed_forward import Activation, FeedForward, GatedFeedForward
from llmctl.models.layers.kernels import cast_residual_stream
from llmctl.models.layers.norms import RMSNorm
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.relative_bias import RelativeBias
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import Fuse, Rename, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    # Efficient T5's tiny and mini (Tay et al. 2021, arXiv:2109.10686, table 2) with half of their
    # feed-forward width, nano beside them, and version 1.1's small and base.
    "nano": {"num_layers": 2, "hidden_size": 128, "num_heads": 2, "intermediate_size": 256},
    "mini": {"num_layers": 4, "hidden_size": 256, "num_heads": 4, "intermediate_size": 640},
    "small": {"num_layers": 8, "hidden_size": 512, "num_heads": 6, "intermediate_size": 1024},
    "base": {"num_layers": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": 2048},
}


T5Activation = Literal[
    "relu", "gelu", "gelu_new", "relu2", "gated-relu", "gated-gelu", "gated-relu2"
]
_FEED_FORWARD: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "relu2": ("relu2", False),
    "gated-relu": ("relu", True),
    "gated-gelu": ("gelu_tanh", True),
    "gated-relu2": ("relu2", True),
}
"""What each activation of T5's is here, and whether it is a gate's."""


class T5Config(EncoderDecoderConfig):
    """The shape of a T5."""

    head_size: int = Field(64, ge=1, strict=True)
    """Width of a head; the heads together may be wider or narrower than the hidden states."""
    max_positions: int = Field(512, ge=8)
    """Tokens that a source or a target may have. No weight depends on it."""
    positions_have_weights = False
    relative_buckets: int = Field(32, ge=4, strict=True)
    """Buckets that share a weight of attention's bias."""
    relative_distance: int = Field(128, ge=2, le=1 << 20, strict=True)
    """The distance from which on all share the last bucket."""
    activation: T5Activation = "gated-gelu"
    """Activation of the feed-forward network: relu, as in version 1.0, or gated-gelu (GELU in its
    approximation, as the gate of a second product), as in 1.1; or gelu, gelu_new, relu2,
    gated-relu, gated-relu2."""
    norm_epsilon: float = Field(1e-6, gt=0.0)
    """Term added to the mean square in every normalisation, ε."""
    initializer_factor: float = Field(1.0, gt=0.0)
    """Factor of the standard deviations of fresh weights."""
    tie_embeddings: bool = True
    """Whether the output layer is the token embedding, as in version 1.0."""
    scale_outputs: bool = True
    """Whether the output layer takes hidden states divided by the square root of their width, as a
    tied one does in version 1.0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Of the buckets that a decoder has, half hold one distance each.
        if self.relative_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"model.relative_distance {self.relative_distance} is within the distances that "
                f"have a bucket each of model.relative_buckets {self.relative_buckets}; use more"
            )
        return self

    def kv_shape(self) -> tuple[int, int]:
        return self.num_heads, self.head_size

    @property
    def attention_width(self) -> int:
        return self.num_heads * self.head_size

    @property
    def gated(self) -> bool:
        """Whether what is activated is a gate."""
        return _FEED_FORWARD[self.activation][1]


def _block(config: T5Config, *, cross_attention: bool) -> Block:
    width, heads, dropout = config.hidden_size, config.num_heads, config.dropout
    shape: dict[str, Any] = {
        "head_size": config.head_size, "bias": False, "dropout": dropout, "scale": 1.0,
    }  # fmt: skip
    norm = partial(RMSNorm, width, config.norm_epsilon)
    activation, gated = _FEED_FORWARD[config.activation]
    feed_forward = GatedFeedForward if gated else partial(FeedForward, bias=False)
    return Block(
        norm,
        CausalSelfAttention(width, heads, num_kv_heads=heads, **shape),
        CrossAttention(width, heads, norm=norm(), **shape) if cross_attention else None,
        feed_forward(width, config.intermediate_size, activation, dropout=dropout),
        dropout,
    )


class T5Stack(Stack):
    """The encoder or the decoder."""

    before = ("relative_bias",)

    def __init__(self, config: T5Config, *, decoder: bool) -> None:
        super().__init__()
        self.relative_bias = RelativeBias(
            config.relative_buckets,
            config.num_heads,
            max_distance=config.relative_distance,
            bidirectional=not decoder,
        )
        layers = config.written_layers if decoder else config.num_layers
        self.blocks = nn.ModuleList(_block(config, cross_attention=decoder) for _ in range(layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.factor = config.hidden_size**-0.5 if decoder and config.scale_outputs else 1.0

    def enter(self, embedded_BTD: Tensor, context: Context) -> tuple[Tensor, Context]:
        queries = embedded_BTD.shape[1]
        cache = context.cache
        bias_1NTS = self.relative_bias(queries, queries + (cache.length if cache else 0))
        if cache is not None and cache.beams_per_group > 1:
            # What the rows of a group read at a slot lies side by side there.
            bias_1NTS = bias_1NTS.repeat_interleave(cache.beams_per_group, -1)
        # A decoder's bias is causal itself.
        context = replace(context, bias=bias_1NTS, causal=False)
        if context.mask is not None and not bias_1NTS.requires_grad:  # once for all layers
            context = replace(context, mask=context.mask + bias_1NTS, bias=None)
        return cast_residual_stream(self.dropout(embedded_BTD)), context

    def leave(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.dropout(self.norm(x_BTD))
        return x_BTD if self.factor == 1.0 else x_BTD * self.factor


class T5(EncoderDecoder):
    """The encoder and the decoder: token ids to hidden states."""

    config: T5Config

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = T5Stack(config, decoder=False)
        self.decoder = T5Stack(config, decoder=True)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Fresh weights as T5's own: each product's result is as large as its input, and queries
        are smaller by √d_k, as their scores aren't scaled (Raffel et al. 2020, §2.1)."""
        config = self.config
        width, factor = config.hidden_size, config.initializer_factor
        self.token_embedding.weight.normal_(0.0, factor)
        smaller = config.head_size**-0.5
        for module in self.modules():
            if isinstance(module, RelativeBias):
                module.weight.normal_(0.0, factor * width**-0.5)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, factor * module.in_features**-0.5)
        for module in self.modules():
            if isinstance(module, CausalSelfAttention):
                module.query_key_value.weight[: config.attention_width] *= smaller
            elif isinstance(module, CrossAttention):
                module.query.weight.mul_(smaller)

    def packs_by_bounds(self, packed: PackedSequences, dropout: float) -> bool:
        # Those kernels take no bias.
        return False


def _names(stack: str, layers: str) -> list[Rename | Fuse]:
    """The names of a stack, whose number of blocks stands in the field ``layers``."""
    ours, theirs = f"{stack}.blocks.{{}}", f"{stack}.block.{{}}.layer"
    last = 2 if stack == "decoder" else 1
    attention, feed_forward = "0.SelfAttention", f"{last}.DenseReluDense"
    renamed = {
        "norm_1": "0.layer_norm",
        "attention.output": f"{attention}.o",
        "norm_2": f"{last}.layer_norm",
        "feed_forward.contract": f"{feed_forward}.wo",
    }
    fused = {"attention.query_key_value": [f"{attention}.{part}" for part in "qkv"]}
    if stack == "decoder":
        cross, attention = "cross_attention", "1.EncDecAttention"
        renamed |= {
            f"{cross}.norm": "1.layer_norm",
            f"{cross}.query": f"{attention}.q",
            f"{cross}.output": f"{attention}.o",
        }
        fused[f"{cross}.key_value"] = [f"{attention}.{part}" for part in "kv"]

    def rename(own: str, name: str, where: str = "") -> Rename:
        return Rename(f"{ours}.{own}", f"{theirs}.{name}", where=where, layers=layers)

    def fuse(own: str, names: Sequence[str], where: str = "") -> Fuse:
        together = tuple(f"{theirs}.{name}" for name in names)
        return Fuse(f"{ours}.{own}", together, where=where, layers=layers)

    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    return [
        Rename(f"{stack}.relative_bias", bias),
        Rename(f"{stack}.norm", f"{stack}.final_layer_norm"),
        *(rename(own, name) for own, name in renamed.items()),
        *(fuse(own, names) for own, names in fused.items()),
        rename("feed_forward.expand", f"{feed_forward}.wi", "not gated"),
        fuse("feed_forward.gate_up", [f"{feed_forward}.wi_{n}" for n in (0, 1)], "gated"),
    ]


WEIGHTS = WeightMap(
    "a T5",
    "",
    (
        Rename("token_embedding", "shared"),
        *_names("encoder", "num_layers"),
        *_names("decoder", "written_layers"),
    ),
    {"seq2seq": (Rename("output", "lm_head", where="not tie_embeddings"),)},
    # The third is of the first T5s' files, where nothing reads it.
    repeated=(
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
)
"""The names of Hugging Face's."""


def to_hugging_face(config: T5Config) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_size,
        "d_ff": config.intermediate_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.written_layers,
        "num_heads": config.num_heads,
        "n_positions": config.max_positions,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "feed_forward_proj": config.activation,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_factor": config.initializer_factor,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.scale_outputs,
    }


FIELDS = FieldTable(
    "a T5",
    read={
        "vocab_size": Read("vocab_size", int),
        "d_model": Read("hidden_size", int),
        "d_kv": Read("head_size", int),
        "d_ff": Read("intermediate_size", int),
        "num_layers": Read("num_layers", int),
        "num_decoder_layers": Read("decoder_layers", int, None, null=0),
        "num_heads": Read("num_heads", int),
        "n_positions": Read("max_positions", int, 512),
        "relative_attention_num_buckets": Read("relative_buckets", int, 32),
        "relative_attention_max_distance": Read("relative_distance", int, 128),
        "feed_forward_proj": Read(
            "activation",
            str,
            "relu",
            names={**{name: name for name in _FEED_FORWARD}, "gated-gelu_new": "gated-gelu"},
        ),
        "dropout_rate": Read("dropout", float, 0.1),
        "layer_norm_epsilon": Read("norm_epsilon", float, 1e-6),
        "initializer_factor": Read("initializer_factor", float, 1.0),
        "tie_word_embeddings": Read("tie_embeddings", bool, True),
        "scale_decoder_outputs": Read("scale_outputs", bool),
    },
    only={"is_encoder_decoder": Only((True,), "a T5 without its decoder is not supported")},
    # Each stack is told anew which of the two it is.
    neutral=frozenset({"is_decoder"}),
    aliases={
        "hidden_size": "d_model",
        "head_dim": "d_kv",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    },
)
"""What becomes of the fields of a Hugging Face config.json."""
_DERIVED: tuple[tuple[str, Mapping[Any, Any]], ...] = (
    ("dense_act_fn", ACTIVATIONS_BY_NAME),
    ("is_gated_act", {True: True, False: False}),
)
"""Fields that say once more what feed_forward_proj does, and win: ours by theirs."""


def from_hugging_face(fields: Mapping[str, Any]) -> T5Config:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what this T5 does not have.
    """
    # What isn't there goes by the output layer, as in files of before version 5 of transformers.
    scaled = fields.get("tie_word_embeddings") is not False
    told = {name: fields[name] for name, _ in _DERIVED if name in fields}
    config = FIELDS.build(
        T5Config,
        {"scale_decoder_outputs": scaled}
        | {name: value for name, value in fields.items() if name not in told},
    )
    for (name, names), own in zip(_DERIVED, _FEED_FORWARD[config.activation], strict=True):
        if name in told and (told[name] not in list(names) or names[told[name]] != own):
            raise FieldError(
                f"{name} is {shown(told[name])}, and feed_forward_proj {config.activation}, which "
                "has another; make them agree"
            )
    return config.replace(decoder_layers=own_number(config.decoder_layers, config.num_layers))


def complete(config: T5Config, tensors: Mapping[str, Tensor]) -> T5Config:
    """The output layer is one of its own where the file has one that isn't the token embedding:
    transformers goes by that, whatever tie_word_embeddings says."""
    own = differs("lm_head.weight", "shared.weight", tensors)
    check_shared(tensors, "shared.weight", WEIGHTS.repeated[:2])
    return config.replace(tie_embeddings=not own)


SPEC = ModelSpec(
    name="t5",
    config=T5Config,
    build=T5,
    presets=PRESETS,
    tasks=("denoise",),
    weights={HUGGING_FACE: WEIGHTS},
    model_type="t5",
    class_prefix="T5",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
    # Embeddings begin with a standard deviation of 1, to which a step of 0.004 is little: after 150
    # steps of nano size on Multi30k hidden tokens cost 6.63 nats with that, 6.19 with this (as by
    # frequency: 6.68), and AdamW with 0.002 everywhere needed four times the text for 6.45.
    training={"optimiser": "muon", "muon_learning_rate": 0.02, "learning_rate": 0.02},
    complete=complete,
)
