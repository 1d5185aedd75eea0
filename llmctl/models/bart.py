"""BART: a denoising encoder–decoder (Lewis et al. 2019, arXiv:1910.13461).

Notable: each stack's embeddings are tokens' and learned positions', normalised; norms stand behind
the parts, as in the first Transformer; GELU; biases everywhere; both stacks and the output layer
share the token embedding, and a bias of the logits is kept that isn't trained. Per block, with
cross-attention in the decoder alone, x = norm(x + attention(x)); x = norm(x +
cross_attention(x, H)); x = norm(x + feed_forward(x)).

B rows, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.models.config_json import (
    ACTIVATION_NAMES,
    ACTIVATIONS_BY_NAME,
    FieldTable,
    Only,
    Read,
)
from llmctl.models.encoder_decoder import (
    EncoderDecoder,
    EncoderDecoderConfig,
    Stack,
    check_shared,
    own_number,
)
from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.context import Context
from llmctl.models.layers.cross_attention import CrossAttention
from llmctl.models.layers.feed_forward import Activation, FeedForward
from llmctl.models.layers.initialisation import initialise
from llmctl.models.layers.kernels import cast_residual_stream
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import BOTH, Fuse, Rename, Row, WeightMap

NORM_EPSILON = 1e-5
"""Term added to the variance in every normalisation, which no BART says otherwise."""
FIRST_POSITION = 2
"""The row of the position embedding that a text's first token has: those before it were padding's
where it was first trained."""

PRESETS: dict[str, dict[str, Any]] = {
    # Two as small as BERT's smallest (Turc et al. 2019), then those of Lewis et al. 2019.
    "nano": {"num_layers": 2, "hidden_size": 128},
    "mini": {"num_layers": 4, "hidden_size": 256},
    "base": {"num_layers": 6, "hidden_size": 768},
    "large": {"num_layers": 12, "hidden_size": 1024},
}


class BartConfig(EncoderDecoderConfig):
    """The shape of a BART."""

    decoder_heads: int = Field(0, ge=0, strict=True)
    """Attention heads of the decoder. 0: as many as the encoder has."""
    decoder_intermediate_size: int = Field(0, ge=0, strict=True)
    """Width inside the decoder's feed-forward network. 0: the encoder's."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network."""
    scale_embedding: bool = False
    """Whether token embeddings are multiplied by the square root of their width."""
    initializer_range: float = Field(0.02, gt=0.0)
    """Standard deviation of fresh weights."""

    @property
    def tie_embeddings(self) -> bool:
        """Whether the output layer is the token embedding, as in every BART."""
        return True

    @property
    def biased_logits(self) -> bool:
        return True

    @property
    def written_heads(self) -> int:
        """Attention heads of the decoder."""
        return self.decoder_heads or self.num_heads

    def kv_shape(self) -> tuple[int, int]:
        return self.written_heads, self.hidden_size // self.written_heads

    @model_validator(mode="after")
    def _check_decoder(self) -> Self:
        if self.hidden_size % self.written_heads:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.decoder_heads "
                f"{self.decoder_heads}"
            )
        return self


class BartBlock(nn.Module):
    """Attention, in the decoder cross-attention, and feed-forward, each added to its input and
    normalised."""

    def __init__(self, config: BartConfig, *, decoder: bool) -> None:
        super().__init__()
        width, dropout = config.hidden_size, config.dropout
        heads = config.written_heads if decoder else config.num_heads
        inner = (config.decoder_intermediate_size if decoder else 0) or config.intermediate_size
        self.attention = CausalSelfAttention(
            width,
            heads,
            num_kv_heads=heads,
            head_size=width // heads,
            bias=True,
            dropout=dropout,
        )
        self.norm_1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.cross_attention: CrossAttention | None = None
        if decoder:
            self.cross_attention = CrossAttention(
                width, heads, norm=nn.Identity(), bias=True, dropout=dropout
            )
            self.cross_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.feed_forward = FeedForward(width, inner, config.activation, dropout=dropout)
        self.norm_2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, context: Context, layer: int) -> Tensor:
        x_BTD = cast_residual_stream(
            self.norm_1(x_BTD + self.dropout(self.attention(x_BTD, context, layer)))
        )
        if self.cross_attention is not None:
            assert context.source is not None
            mixed_BTD = self.cross_attention(x_BTD, context.source, layer)
            x_BTD = cast_residual_stream(self.cross_norm(x_BTD + self.dropout(mixed_BTD)))
        return cast_residual_stream(self.norm_2(x_BTD + self.dropout(self.feed_forward(x_BTD))))


class BartStack(Stack):
    """The encoder or the decoder."""

    before = ("position_embedding", "norm")

    def __init__(self, config: BartConfig, *, decoder: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.position_embedding = nn.Embedding(config.max_positions + FIRST_POSITION, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)
        layers = config.written_layers if decoder else config.num_layers
        self.blocks = nn.ModuleList(BartBlock(config, decoder=decoder) for _ in range(layers))

    def enter(self, embedded_BTD: Tensor, context: Context) -> tuple[Tensor, Context]:
        x_BTD = embedded_BTD + self.position_embedding(context.position_ids + FIRST_POSITION)
        return cast_residual_stream(self.dropout(self.norm(x_BTD))), context


class Bart(EncoderDecoder):
    """The encoder and the decoder: token ids to hidden states."""

    config: BartConfig
    target_start = ("eos",)
    opens_texts = True

    def __init__(self, config: BartConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = BartStack(config, decoder=False)
        self.decoder = BartStack(config, decoder=True)
        self.factor = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.apply(lambda module: initialise(module, config.initializer_range))

    def embed(self, input_ids_BT: Tensor) -> Tensor:
        x_BTD = super().embed(input_ids_BT)
        return x_BTD if self.factor == 1.0 else x_BTD * self.factor


def _names(stack: str, layers: str) -> list[Rename | Fuse]:
    """The names of a stack, whose number of blocks stands in the field ``layers``."""
    outer, ours, theirs = f"model.{stack}", f"{stack}.blocks.{{}}", f"model.{stack}.layers.{{}}"

    def projections(attention: str, letters: str) -> tuple[str, ...]:
        return tuple(f"{theirs}.{attention}.{letter}_proj" for letter in letters)

    renamed = {
        "attention.output": "self_attn.out_proj",
        "norm_1": "self_attn_layer_norm",
        "feed_forward.expand": "fc1",
        "feed_forward.contract": "fc2",
        "norm_2": "final_layer_norm",
    }
    fused = {"attention.query_key_value": projections("self_attn", "qkv")}
    if stack == "decoder":
        renamed |= {
            "cross_attention.query": "encoder_attn.q_proj",
            "cross_attention.output": "encoder_attn.out_proj",
            "cross_norm": "encoder_attn_layer_norm",
        }
        fused["cross_attention.key_value"] = projections("encoder_attn", "kv")
    return [
        Rename(f"{stack}.position_embedding", f"{outer}.embed_positions"),
        Rename(f"{stack}.norm", f"{outer}.layernorm_embedding", BOTH),
        *(Fuse(f"{ours}.{own}", names, BOTH, layers=layers) for own, names in fused.items()),
        *(
            Rename(f"{ours}.{own}", f"{theirs}.{name}", BOTH, layers=layers)
            for own, name in renamed.items()
        ),
    ]


WEIGHTS = WeightMap(
    "a BART",
    "model.",
    (
        Rename("token_embedding", "model.shared"),
        *_names("encoder", "num_layers"),
        *_names("decoder", "written_layers"),
    ),
    {"seq2seq": (Row("output_bias", "final_logits_bias", ()),)},
    # The last two are fairseq's.
    repeated=(
        "lm_head.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "model.encoder.version",
        "model.decoder.version",
    ),
)
"""The names of Hugging Face's."""


def to_hugging_face(config: BartConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    inner = config.intermediate_size
    return {
        "model_type": "bart",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "encoder_layers": config.num_layers,
        "decoder_layers": config.written_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.written_heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": config.decoder_intermediate_size or inner,
        "max_position_embeddings": config.max_positions,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "scale_embedding": config.scale_embedding,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "init_std": config.initializer_range,
        "tie_word_embeddings": True,
    }


FIELDS = FieldTable(
    "a BART",
    read={
        "vocab_size": Read("vocab_size", int),
        "d_model": Read("hidden_size", int),
        "encoder_layers": Read("num_layers", int),
        "decoder_layers": Read("decoder_layers", int),
        "encoder_attention_heads": Read("num_heads", int),
        "decoder_attention_heads": Read("decoder_heads", int),
        "encoder_ffn_dim": Read("intermediate_size", int),
        "decoder_ffn_dim": Read("decoder_intermediate_size", int),
        "max_position_embeddings": Read("max_positions", int),
        "activation_function": Read(
            "activation",
            str,
            "gelu",
            names=ACTIVATIONS_BY_NAME,
        ),
        "scale_embedding": Read("scale_embedding", bool, False),
        "dropout": Read("dropout", float, 0.1),
        "init_std": Read("initializer_range", float, 0.02),
    },
    only={
        "is_encoder_decoder": Only((True,), "a BART without its encoder is not supported"),
        "is_decoder": Only((None, False), "a BART without its encoder is not supported"),
        "tie_word_embeddings": Only(
            (True,), "only one embedding for both stacks and the output layer is supported"
        ),
        # What fairseq's other models of the time had, which no released BART is.
        "add_bias_logits": Only((None, False)),
        "add_final_layer_norm": Only((None, False)),
        "extra_pos_embeddings": Only((2,)),
        "normalize_before": Only((None, False)),
        "normalize_embedding": Only((None, True)),
        "static_position_embeddings": Only((None, False)),
    },
    # Training alone; and what repeats the number of layers, unread.
    neutral=frozenset(
        {"activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "classif_dropout",
         "gradient_checkpointing", "force_bos_token_to_be_generated", "num_hidden_layers"}
    ),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
    },
)  # fmt: skip
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> BartConfig:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what this BART does not have.
    """
    config = FIELDS.build(BartConfig, fields)
    return config.replace(
        decoder_layers=own_number(config.decoder_layers, config.num_layers),
        decoder_heads=own_number(config.decoder_heads, config.num_heads),
        decoder_intermediate_size=own_number(
            config.decoder_intermediate_size, config.intermediate_size
        ),
    )


def complete(config: BartConfig, tensors: Mapping[str, Tensor]) -> BartConfig:
    """Raises ValueError where what repeats the token embedding is another."""
    check_shared(tensors, "model.shared.weight", WEIGHTS.repeated[:3])
    return config


SPEC = ModelSpec(
    name="bart",
    config=BartConfig,
    build=Bart,
    presets=PRESETS,
    tasks=("denoise",),
    weights={HUGGING_FACE: WEIGHTS},
    model_type="bart",
    class_prefix="Bart",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
    objective={"noise": "infilling+permutation"},
    complete=complete,
)
