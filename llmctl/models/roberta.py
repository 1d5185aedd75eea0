"""RoBERTa: BERT, trained for longer and on whole texts (Liu et al. 2019, arXiv:1907.11692), and
XLM-R, which is one of a hundred languages (Conneau et al. 2020, arXiv:1911.02116).

Notable: there are no next sentences to judge, so segments are of one kind, and nothing is
pretrained to stand on [CLS]: a classifier has a fresh layer with a tanh there. The rows of the
position embedding begin behind padding's, which is numbered as the padding token is. The head of
masked language modelling has a GELU, whatever the blocks have.

The two are one network; what differs is the tokenizer, byte-level BPE and unigram pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from llmctl.errors import ConfigError
from llmctl.models.bert import FIELDS as BERT_FIELDS
from llmctl.models.bert import PRESETS as BERT_PRESETS
from llmctl.models.bert import Bert, BertConfig, encoder_rules
from llmctl.models.bert import to_hugging_face as bert_to_hugging_face
from llmctl.models.config_json import FieldError, FieldTable, Only, Read, shown
from llmctl.models.layers.feed_forward import Activation
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.models.weight_map import BOTH, Copy, Rename, WeightMap

PRESETS: dict[str, dict[str, Any]] = {
    **BERT_PRESETS,
    # Liu et al. 2019, §3.1.
    "large": {"num_layers": 24, "hidden_size": 1024},
}
PADDING_FIELD = "pad_token_id"
PUBLISHED_PADDING = 1
"""The padding token's number in the published vocabularies."""


class RobertaConfig(BertConfig):
    """The shape of a RoBERTa."""

    model_type: ClassVar[str] = "roberta"

    num_segments: int = Field(1, ge=1, strict=True)
    """Rows of the segment embedding. 1, as published: all tokens have the same."""
    padding_id: int | None = Field(None, ge=0, strict=True)
    """Number of the padding token, behind whose row those of the positions begin. Filled in from
    the tokenizer."""
    norm_epsilon: float = Field(1e-5, gt=0.0)
    """Term added to the variance in every normalisation, ε."""

    def with_vocabulary(self, size: int, special: Mapping[str, int]) -> RobertaConfig:
        padding = special.get("pad", self.padding_row)
        if self.padding_id not in (None, padding):
            raise ConfigError(
                f"model.padding_id {self.padding_id}: the tokenizer's padding token is {padding}; "
                "leave it out"
            )
        return self.replace(vocab_size=size, padding_id=padding)

    @property
    def segment_types(self) -> int:
        return self.num_segments

    @property
    def pairs_by_segments(self) -> bool:
        return self.num_segments > 1

    @property
    def padding_row(self) -> int:
        return PUBLISHED_PADDING if self.padding_id is None else self.padding_id

    @property
    def head_activation(self) -> Activation:
        return "gelu"


class XlmRobertaConfig(RobertaConfig):
    """The shape of an XLM-R."""

    model_type = "xlm-roberta"


_CLASSIFIER = (
    Rename("pooler", "classifier.dense", BOTH),
    Rename("output", "classifier.out_proj", BOTH),
)
_BODY_RULES = encoder_rules("roberta.")
_HEADS = {
    "masked_lm": (
        Rename("transform", "lm_head.dense", BOTH),
        Rename("transform_norm", "lm_head.layer_norm", BOTH),
        Rename("output_bias", "lm_head.bias", ()),
        Rename("output", "lm_head.decoder", where="not tie_embeddings"),
        # Where they are not tied, transformers adds the layer's own bias, and keeps both.
        Copy("output_bias", "lm_head.decoder.bias", (), "not tie_embeddings"),
    ),
    "classify": _CLASSIFIER,
    "regress": _CLASSIFIER,
    "tag": (Rename("output", "classifier", BOTH),),
}
# Published files have a pooler that nothing was learned with, and that no head of theirs uses.
_NO_POOLER = tuple(f"roberta.pooler.dense.{part}" for part in BOTH)


def to_hugging_face(config: RobertaConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json."""
    return {
        **bert_to_hugging_face(config),
        "model_type": config.model_type,
        "type_vocab_size": config.num_segments,
        "max_position_embeddings": config.max_positions + config.padding_row + 1,
        PADDING_FIELD: config.padding_row,
    }


def _fields(what: str) -> FieldTable:
    return FieldTable(
        what,
        read={
            **BERT_FIELDS.read,
            "type_vocab_size": Read("num_segments", int, 2),
        },
        only={
            "position_embedding_type": BERT_FIELDS.only["position_embedding_type"],
            "is_decoder": Only(
                (None, False), f"{what} that reads from left to right only is not supported"
            ),
        },
    )


FIELDS = {"roberta": _fields("a RoBERTa"), "xlm-roberta": _fields("an XLM-R")}
"""What becomes of the fields of a Hugging Face config.json, by its model_type."""


def from_hugging_face(kind: type[RobertaConfig], fields: Mapping[str, Any]) -> RobertaConfig:
    """The configuration of a kind that a Hugging Face config.json describes.

    Raises FieldError for what such a model does not have here.
    """
    padding = fields.get(PADDING_FIELD, PUBLISHED_PADDING)
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise FieldError(
            f"{PADDING_FIELD} is {shown(padding)}, and positions are numbered from behind that "
            "token's: it must be its number; copy the file again from where it was made"
        )
    fields = dict(fields)
    rows = fields.get("max_position_embeddings")
    if isinstance(rows, int) and not isinstance(rows, bool):
        if rows <= padding + 1:
            raise FieldError(
                f"max_position_embeddings is {rows}, and the rows up to {PADDING_FIELD} {padding} "
                "are no text's; copy the file again from where it was made"
            )
        fields["max_position_embeddings"] = rows - padding - 1
    return FIELDS[kind.model_type].build(kind, fields, padding_id=padding)


def _spec(name: str, config: type[RobertaConfig], class_prefix: str) -> ModelSpec:
    what = FIELDS[config.model_type].what
    return ModelSpec(
        name=name,
        config=config,
        build=Bert,
        presets=PRESETS,
        tasks=("masked_lm",),
        weights={HUGGING_FACE: WeightMap(what, "roberta.", _BODY_RULES, _HEADS, _NO_POOLER)},
        model_type=config.model_type,
        class_prefix=class_prefix,
        to_hugging_face=to_hugging_face,
        from_hugging_face=partial(from_hugging_face, config),
        # Liu et al. 2019, §4.2: no next sentences.
        objective={"next_sentence": False},
    )


ROBERTA_SPECS = (
    _spec("roberta", RobertaConfig, "Roberta"),
    _spec("xlm-roberta", XlmRobertaConfig, "XLMRoberta"),
)
