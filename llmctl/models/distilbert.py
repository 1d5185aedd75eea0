"""DistilBERT: a BERT of half the layers, taught by a whole one (Sanh et al. 2019,
arXiv:1910.01108).

Notable: there are no segments, so that the two texts of a pair are told by [SEP]; nothing is
pretrained to stand on [CLS], where a classifier has a fresh layer with a ReLU. What taught the
published ones isn't here: one of these learns by masked language modelling alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from llmctl.models.bert import PRESETS as BERT_PRESETS
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.config_json import FieldTable, Only, Read
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import BOTH, Fuse, Rename, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    **{name: shape for name, shape in BERT_PRESETS.items() if name != "base"},
    # Sanh et al. 2019, §2.
    "base": {"num_layers": 6, "hidden_size": 768},
}
FIXED_EPSILON = 1e-12
"""The term in every normalisation, which no field of theirs says."""


class DistilBertConfig(BertConfig):
    """The shape of a DistilBERT."""

    norm_epsilon: float = Field(FIXED_EPSILON, gt=0.0, ge=FIXED_EPSILON, le=FIXED_EPSILON)
    """Term added to the variance in every normalisation, ε: that of all DistilBERTs."""
    pooler_activation: ClassVar[Literal["tanh", "gelu", "relu"]] = "relu"

    @property
    def segment_types(self) -> int:
        return 0


_LAYER = "distilbert.transformer.layer.{}."
_DISTIL_RULES = (
    Rename("token_embedding", "distilbert.embeddings.word_embeddings"),
    Rename("position_embedding", "distilbert.embeddings.position_embeddings"),
    Rename("norm", "distilbert.embeddings.LayerNorm", BOTH),
    Fuse(
        "blocks.{}.attention.query_key_value",
        tuple(f"{_LAYER}attention.{part}_lin" for part in "qkv"),
        BOTH,
    ),
    *(
        Rename(f"blocks.{{}}.{ours}", f"{_LAYER}{theirs}", BOTH)
        for ours, theirs in {
            "attention.output": "attention.out_lin",
            "norm_1": "sa_layer_norm",
            "feed_forward.expand": "ffn.lin1",
            "feed_forward.contract": "ffn.lin2",
            "norm_2": "output_layer_norm",
        }.items()
    ),
)
_PRE_CLASSIFIER = (Rename("pooler", "pre_classifier", BOTH), Rename("output", "classifier", BOTH))
WEIGHTS = WeightMap(
    "a DistilBERT",
    "distilbert.",
    _DISTIL_RULES,
    {
        "masked_lm": (
            Rename("transform", "vocab_transform", BOTH),
            Rename("transform_norm", "vocab_layer_norm", BOTH),
            Rename("output_bias", "vocab_projector.bias", ()),
            Rename("output", "vocab_projector", where="not tie_embeddings"),
        ),
        "classify": _PRE_CLASSIFIER,
        "regress": _PRE_CLASSIFIER,
        "tag": (Rename("output", "classifier", BOTH),),
    },
)
"""The names of Hugging Face's."""


def to_hugging_face(config: DistilBertConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.intermediate_size,
        "activation": config.activation,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "max_position_embeddings": config.max_positions,
        "sinusoidal_pos_embds": False,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_embeddings,
    }


FIELDS = FieldTable(
    "a DistilBERT",
    read={
        "vocab_size": Read("vocab_size", int, 30522),
        "dim": Read("hidden_size", int, 768),
        "n_layers": Read("num_layers", int, 6),
        "n_heads": Read("num_heads", int, 12),
        "hidden_dim": Read("intermediate_size", int, 3072),
        "activation": Read("activation", str, "gelu", names={"gelu": "gelu", "relu": "relu"}),
        "dropout": Read("dropout", float, 0.1),
        "max_position_embeddings": Read("max_positions", int, 512),
        "initializer_range": Read("initializer_range", float, 0.02),
        "tie_word_embeddings": Read("tie_embeddings", bool, True),
    },
    only={"tie_weights_": Only((None, True), "published DistilBERTs tie their embeddings")},
    # Dropout of heads, and how positions began: their table is in the file.
    neutral=frozenset({"qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"}),
    aliases={
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    },
)
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> DistilBertConfig:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what this DistilBERT does not have.
    """
    return FIELDS.build(DistilBertConfig, fields)


SPEC = ModelSpec(
    name="distilbert",
    config=DistilBertConfig,
    build=Bert,
    presets=PRESETS,
    tasks=("masked_lm",),
    weights={HUGGING_FACE: WEIGHTS},
    model_type="distilbert",
    class_prefix="DistilBert",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
    # Sanh et al. 2019, §3: no next sentences.
    objective={"next_sentence": False},
)
