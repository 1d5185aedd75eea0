"""BERT: a bidirectional Transformer encoder (Devlin et al. 2018, arXiv:1810.04805).

Notable: token, position and segment embeddings, normalised; post-norm blocks; exact GELU (ReLU
selectable); learned positions. H⁰ = X·E + P + S, then per block
x = norm(x + attention(x)); x = norm(x + feed_forward(x)).

The body returns hidden states; pooler and heads lie in llmctl/models/heads. A row may hold several
texts end to end (packing): ``position_ids`` then start anew at each and the mask keeps them apart.

B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.models.config_json import FieldTable, Only, Read
from llmctl.models.layers.attention import SelfAttention, additive_mask
from llmctl.models.layers.feed_forward import Activation, FeedForward
from llmctl.models.layers.initialisation import initialise
from llmctl.models.layers.kernels import cast_residual_stream
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.virtual_tokens import Virtual
from llmctl.models.one_place import hidden_at, is_plain
from llmctl.models.scaling import CAUSAL
from llmctl.models.spec import HUGGING_FACE, MOST_LAYERS, Backbone, ModelConfig, ModelSpec
from llmctl.models.weight_map import BOTH, Copy, Fuse, Rename, Rule, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    # Sizes of Turc et al. 2019 (arXiv:1908.08962), table 1, and of BERT-base; heads are 64 wide.
    "nano": {"num_layers": 2, "hidden_size": 128},
    "mini": {"num_layers": 4, "hidden_size": 256},
    "small": {"num_layers": 4, "hidden_size": 512},
    "medium": {"num_layers": 8, "hidden_size": 512},
    "base": {"num_layers": 12, "hidden_size": 768},
}


class BertConfig(ModelConfig):
    """The shape of a BERT."""

    num_layers: int = Field(4, ge=1, le=MOST_LAYERS, strict=True)
    """Blocks."""
    hidden_size: int = Field(256, ge=1, strict=True)
    """Width of the hidden states; a multiple of the heads."""
    num_heads: int = Field(0, ge=0, strict=True)
    """Attention heads. 0: one for each 64 of the width, as in every published size."""
    max_positions: int = Field(512, ge=8)
    """Tokens that a text may have: the rows of the position embedding."""
    activation: Activation = "gelu"
    """Activation of the feed-forward network: gelu or relu."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout of embeddings, attention weights and block outputs. The paper has 0.1; a run over
    less text than the model can memorise learns faster without (Geiping and Goldstein 2022)."""
    norm_epsilon: float = Field(1e-12, gt=0.0)
    """Term added to the variance in every normalisation, ε."""
    initializer_range: float = Field(0.02, gt=0.0)
    """Standard deviation of fresh weights."""
    tie_embeddings: bool = True
    """Whether the output layer of masked language modelling is the token embedding."""

    @property
    def head_activation(self) -> Activation:
        """Activation of the transform in the head of masked language modelling."""
        return self.activation

    @property
    def segment_types(self) -> int:
        """Rows of the segment embedding. 0: there is none."""
        return 2

    @property
    def reads_segments(self) -> bool:
        return self.segment_types > 1

    @property
    def padding_row(self) -> int | None:
        """The row of the position embedding that padding has, behind which those of a text's tokens
        begin; None: they begin with the first."""
        return None


class BertBlock(nn.Module):
    """One encoder layer: attention and feed-forward, each added to its input and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.norm_epsilon
        self.attention = SelfAttention(width, config.num_heads, config.dropout)
        self.norm_1 = nn.LayerNorm(width, eps=epsilon)
        self.feed_forward = FeedForward(width, config.intermediate_size, config.activation)
        self.norm_2 = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        packed: PackedSequences | None,
        virtual: Virtual | None = None,
        layer: int = 0,
    ) -> Tensor:
        return self.combined(x_BTD, self.attention(x_BTD, mask, packed, virtual, layer))

    def combined(self, x_BTD: Tensor, mixed_BTD: Tensor) -> Tensor:
        """What the layer gives of its input and of what attention has mixed."""
        x_BTD = cast_residual_stream(self.norm_1(x_BTD + self.dropout(mixed_BTD)))
        return cast_residual_stream(self.norm_2(x_BTD + self.dropout(self.feed_forward(x_BTD))))


class Bert(Backbone):
    """The encoder: token ids to hidden states."""

    kind = "encoder"

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        first = 0 if config.padding_row is None else config.padding_row + 1
        self.position_embedding = nn.Embedding(first + config.max_positions, width)
        if config.segment_types:
            self.segment_embedding = nn.Embedding(config.segment_types, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_projection: nn.Linear | None = None
        if width != config.hidden_size:
            self.embedding_projection = nn.Linear(width, config.hidden_size)
        self.blocks = nn.ModuleList(BertBlock(config) for _ in range(config.num_layers))
        self.apply(lambda module: initialise(module, config.initializer_range))
        self._start_positions()

    @torch.no_grad()
    def _start_positions(self) -> None:
        """Begin the learned positions as sinusoids (Vaswani et al. 2017, §3.5), as large as the
        token embeddings: neighbours can then be told from the first step on, which ends the long
        plateau of masked language modelling early."""
        table_TD = self.position_embedding.weight
        half = table_TD.shape[1] // 2
        # In NumPy: PyTorch's first sine in a process, over two threads, has other bits at times.
        angles = np.arange(len(table_TD))[:, None] * 10000.0 ** (-np.arange(half) / half)
        # A sine's root mean square is 1/√2.
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        waves *= self.config.initializer_range * 2**0.5
        table_TD[:, : 2 * half] = torch.from_numpy(waves).to(table_TD)

    def forward(
        self,
        input_ids_BT: Tensor,
        segment_ids_BT: Tensor | None = None,
        mask: Tensor | PackedSequences | None = None,
        position_ids_BT: Tensor | None = None,
        *,
        with_prompt: bool = False,
    ) -> Tensor:
        """Hidden states (B, T, D) of the last layer.

        input_ids_BT: int64. segment_ids_BT: 0 or 1, default 0. mask: bool, (B, T) True at real
        tokens, or the texts of packed rows; default all. position_ids_BT: default 0 … T-1.
        with_prompt: those of a soft prompt too, before the text's.
        """
        rows = None
        if self.virtual_tokens is not None:
            rows = self.virtual_tokens.before(input_ids_BT, mask, position_ids_BT, segment_ids_BT)
            input_ids_BT, segment_ids_BT = rows.input_ids_BS, rows.segment_ids_BS
            mask, position_ids_BT = rows.mask, rows.position_ids_BS
        packed = added = None
        if isinstance(mask, PackedSequences):
            if mask.supports_varlen(self.config.dropout if self.training else 0.0):
                packed = mask
            else:
                added = additive_mask(mask.attention_mask()[:, None])
        elif mask is not None:
            added = additive_mask(mask[:, None, None, :])
        virtual = None if rows is None else rows.virtual
        rows_BT = self.position_rows(input_ids_BT, position_ids_BT)
        x_BTD = self.embedded(input_ids_BT, rows_BT, segment_ids_BT, virtual)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, added, packed, virtual, layer)
        return x_BTD if rows is None else rows.of_texts(x_BTD, with_prompt=with_prompt)

    def embedded(
        self,
        input_ids_BT: Tensor,
        position_rows_BT: Tensor,
        segment_ids_BT: Tensor | None = None,
        virtual: Virtual | None = None,
    ) -> Tensor:
        """What the first layer reads, (B, T, D)."""
        x_BTD = self.token_embedding(input_ids_BT)
        if virtual is not None:
            x_BTD = virtual.embed(x_BTD)
        x_BTD = x_BTD + self.position_embedding(position_rows_BT)
        if self.config.segment_types:
            x_BTD = x_BTD + self._segments(segment_ids_BT)
        x_BTD = self.dropout(self.norm(x_BTD))
        if self.embedding_projection is not None:
            x_BTD = self.embedding_projection(x_BTD)
        return cast_residual_stream(x_BTD)

    def hidden_at(self, input_ids_BT: Tensor, places_B: Tensor) -> Tensor:
        if is_plain(self):
            return hidden_at(self, input_ids_BT, places_B)
        return super().hidden_at(input_ids_BT, places_B)

    def position_rows(self, input_ids_BT: Tensor, position_ids_BT: Tensor | None) -> Tensor:
        """Rows of the position embedding, (T,) or (B, T)."""
        padding = self.config.padding_row
        if padding is None:
            if position_ids_BT is None:
                return torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
            return position_ids_BT
        if position_ids_BT is not None:
            return position_ids_BT + (padding + 1)
        # As the published networks count: what has padding's id has its row, wherever it stands.
        real_BT = (input_ids_BT != padding).long()
        return real_BT.cumsum(1) * real_BT + padding

    def _segments(self, segment_ids_BT: Tensor | None) -> Tensor:
        """Vectors of the segments, (D,) or (B, T, D). Where there is one, all tokens are of it."""
        first_D = self.segment_embedding.weight[0]
        if segment_ids_BT is None or self.config.segment_types == 1:
            return first_D
        # The gradient of a table of two rows, looked up, would be added up row by row.
        is_second_BT1 = segment_ids_BT.unsqueeze(-1).to(first_D.dtype)
        return torch.lerp(first_D, self.segment_embedding.weight[1], is_second_BT1)


def encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """The names of an encoder like this in Hugging Face's classes. prefix: what they begin with."""
    layer = f"{prefix}encoder.layer.{{}}."
    return (
        Rename("token_embedding", f"{prefix}embeddings.word_embeddings"),
        Rename("position_embedding", f"{prefix}embeddings.position_embeddings"),
        Rename(
            "segment_embedding", f"{prefix}embeddings.token_type_embeddings", where="segment_types"
        ),
        Rename("norm", f"{prefix}embeddings.LayerNorm", BOTH),
        Fuse(
            "blocks.{}.attention.query_key_value",
            tuple(f"{layer}attention.self.{part}" for part in ("query", "key", "value")),
            BOTH,
        ),
        *(
            Rename(f"blocks.{{}}.{ours}", f"{layer}{theirs}", BOTH)
            for ours, theirs in {
                "attention.output": "attention.output.dense",
                "norm_1": "attention.output.LayerNorm",
                "feed_forward.expand": "intermediate.dense",
                "feed_forward.contract": "output.dense",
                "norm_2": "output.LayerNorm",
            }.items()
        ),
    )


_POOLER = Rename("pooler", "bert.pooler.dense", BOTH)
WEIGHTS = WeightMap(
    "a BERT",
    "bert.",
    encoder_rules("bert."),
    {
        "masked_lm": (
            Rename("transform", "cls.predictions.transform.dense", BOTH),
            Rename("transform_norm", "cls.predictions.transform.LayerNorm", BOTH),
            _POOLER,
            Rename("next_sentence", "cls.seq_relationship", BOTH),
            Rename("output_bias", "cls.predictions.bias", ()),
            # Where they are not tied, transformers adds the layer's own bias, and keeps both.
            Rename("output", "cls.predictions.decoder", where="not tie_embeddings"),
            Copy("output_bias", "cls.predictions.decoder.bias", (), "not tie_embeddings"),
        ),
        "classify": (_POOLER, Rename("output", "classifier", BOTH)),
        "regress": (_POOLER, Rename("output", "classifier", BOTH)),
        "tag": (Rename("output", "classifier", BOTH),),
    },
)
"""The names of Hugging Face's."""


def to_hugging_face(config: BertConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.activation,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": 2,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.norm_epsilon,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": config.tie_embeddings,
    }


FIELDS = FieldTable(
    "a BERT",
    read={
        "vocab_size": Read("vocab_size", int),
        "hidden_size": Read("hidden_size", int),
        "num_hidden_layers": Read("num_layers", int),
        "num_attention_heads": Read("num_heads", int),
        "intermediate_size": Read("intermediate_size", int),
        "hidden_act": Read("activation", str, "gelu", names={"gelu": "gelu", "relu": "relu"}),
        "hidden_dropout_prob": Read("dropout", float, 0.1),
        "max_position_embeddings": Read("max_positions", int),
        "initializer_range": Read("initializer_range", float, 0.02),
        "layer_norm_eps": Read("norm_epsilon", float, 1e-12),
        "tie_word_embeddings": Read("tie_embeddings", bool, True),
    },
    only={
        "position_embedding_type": Only(
            ("absolute",), "only absolute position embeddings are supported"
        ),
        "type_vocab_size": Only((2,), "only BERTs with two segment types are supported"),
        "is_decoder": Only(
            (None, False), "a BERT that reads from left to right only is not supported"
        ),
        # The first BERTs' files, whose pooler is the same as now.
        "directionality": Only(("bidi",)),
        "pooler_type": Only(("first_token_transform",)),
    },
    neutral=frozenset(
        {
            "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
            "pooler_size_per_head",
            # What TinyBERT's distillation wrote.
            "cell", "emb_size", "pre_trained", "structure", "training",
        }
    ),
)  # fmt: skip
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> BertConfig:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what this BERT does not have.
    """
    return FIELDS.build(BertConfig, fields)


SPEC = ModelSpec(
    name="bert",
    config=BertConfig,
    build=Bert,
    presets=PRESETS,
    tasks=("masked_lm", "electra"),
    detector="electra",
    weights={HUGGING_FACE: WEIGHTS},
    model_type="bert",
    class_prefix="Bert",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
    # Its own E, A and B, from five trainings: too few to tell the exponents, or how wrong it is.
    scaling=replace(CAUSAL, irreducible=0.8495, weights_factor=0.8180, tokens_factor=6.750),
)
