"""ELECTRA: a BERT whose embeddings may have a width of their own (Clark et al. 2020,
arXiv:2003.10555).

Notable: the network that is kept, the discriminator, has learned to tell which tokens of a text
were replaced; that of a quarter of the width which replaced them, the generator, shares its
embeddings, so that a linear layer leads from their width to its own. A classifier has a GELU
between its two layers where BERT has a tanh, and no pretrained pooler.

What the two are trained for lies in llmctl/tasks/electra, their heads in llmctl/models/heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from llmctl.models.bert import FIELDS as BERT_FIELDS
from llmctl.models.bert import PRESETS as BERT_PRESETS
from llmctl.models.bert import Bert, BertConfig, encoder_rules
from llmctl.models.bert import to_hugging_face as bert_to_hugging_face
from llmctl.models.config_json import FieldTable, Only, Read
from llmctl.models.layers.feed_forward import Activation
from llmctl.models.spec import HUGGING_FACE, ModelSpec, Role
from llmctl.models.weight_map import BOTH, Rename, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    **{name: BERT_PRESETS[name] for name in ("nano", "mini", "medium")},
    # Clark et al. 2020, table 6.
    "small": {"num_layers": 12, "hidden_size": 256, "embedding_size": 128},
    "base": {"num_layers": 12, "hidden_size": 768},
}


class ElectraConfig(BertConfig):
    """The shape of an ELECTRA: of its discriminator, or of its generator."""

    embedding_size: int = Field(0, ge=0, strict=True)
    """Width of the embeddings, from which a linear layer leads to the hidden states' where they
    differ. 0: that of the hidden states."""
    pooler_activation: ClassVar[Literal["tanh", "gelu", "relu"]] = "gelu"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_embedding(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("embedding_size"):
            width = values.get("hidden_size", cls.model_fields["hidden_size"].default)
            values = {**values, "embedding_size": width}
        return values

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def projects_embeddings(self) -> bool:
        """Whether a linear layer leads from the embeddings to the hidden states."""
        return self.embedding_size != self.hidden_size

    @property
    def head_activation(self) -> Activation:
        """GELU, whatever the blocks have."""
        return "gelu"


class Electra(Bert):
    """The encoder, whose embeddings may have a width of their own."""

    def role(self, name: str) -> Role:
        if name == "embedding_projection.weight":
            return Role("matrix", "embeddings")
        return super().role(name)


_CLASSIFIER = (
    Rename("pooler", "classifier.dense", BOTH),
    Rename("output", "classifier.out_proj", BOTH),
)

WEIGHTS = WeightMap(
    "an ELECTRA",
    "electra.",
    (
        *encoder_rules("electra."),
        Rename(
            "embedding_projection", "electra.embeddings_project", BOTH, where="projects_embeddings"
        ),
    ),
    {
        "electra": (
            Rename("transform", "discriminator_predictions.dense", BOTH),
            Rename("output", "discriminator_predictions.dense_prediction", BOTH),
        ),
        "masked_lm": (
            Rename("transform", "generator_predictions.dense", BOTH),
            Rename("transform_norm", "generator_predictions.LayerNorm", BOTH),
            Rename("output_bias", "generator_lm_head.bias", ()),
            Rename("output", "generator_lm_head", where="not tie_embeddings"),
        ),
        "classify": _CLASSIFIER,
        "regress": _CLASSIFIER,
        "tag": (Rename("output", "classifier", BOTH),),
    },
)
"""The names of Hugging Face's."""


def to_hugging_face(config: ElectraConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        **bert_to_hugging_face(config),
        "model_type": "electra",
        "embedding_size": config.embedding_size,
    }


FIELDS = FieldTable(
    "an ELECTRA",
    read={**BERT_FIELDS.read, "embedding_size": Read("embedding_size", int, 128)},
    only={
        "position_embedding_type": BERT_FIELDS.only["position_embedding_type"],
        "type_vocab_size": BERT_FIELDS.only["type_vocab_size"],
        "is_decoder": Only(
            (None, False), "an ELECTRA that reads from left to right only is not supported"
        ),
    },
    # Of a class of transformers' that chooses among answers.
    neutral=frozenset(
        {"summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"}
    ),
)
"""What becomes of the fields of a Hugging Face config.json."""


def from_hugging_face(fields: Mapping[str, Any]) -> ElectraConfig:
    """The configuration that a Hugging Face config.json describes.

    Raises FieldError for what this ELECTRA does not have.
    """
    return FIELDS.build(ElectraConfig, fields)


SPEC = ModelSpec(
    name="electra",
    config=ElectraConfig,
    build=Electra,
    presets=PRESETS,
    tasks=("electra",),
    detector="electra",
    weights={HUGGING_FACE: WEIGHTS},
    model_type="electra",
    class_prefix="Electra",
    to_hugging_face=to_hugging_face,
    from_hugging_face=from_hugging_face,
)
