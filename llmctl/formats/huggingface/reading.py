"""A folder in Hugging Face's layout to a model.

The description is checked, and what it says of the tensors is compared with the heads of their
files, before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from llmctl import tokenizers
from llmctl.errors import InputError, did_you_mean
from llmctl.formats.base import Pretrained, not_the_model
from llmctl.formats.description import (
    MAX_LENGTH,
    MAX_SOURCE,
    MAX_TARGET,
    TASK,
    TOKENIZER,
    Purpose,
    PurposeError,
    check_tokenizer,
)
from llmctl.formats.huggingface.packed import (
    INTEGER_PARTS,
    QUANTIZATION,
    PackedWeights,
    packing_of,
)
from llmctl.formats.huggingface.purposes import purpose_of
from llmctl.formats.huggingface.tensors import import_model
from llmctl.formats.huggingface.weights import (
    AGAIN,
    Weights,
    check_body,
    check_sizes,
    weights_of,
)
from llmctl.models import BY_MODEL_TYPE
from llmctl.models.config_json import FieldError, shown
from llmctl.models.heads import HEADS
from llmctl.models.heads.classify import CLASSES
from llmctl.models.heads.seq2seq import Seq2SeqShape
from llmctl.models.spec import HUGGING_FACE, ModelSpec
from llmctl.parsing import read_json_object
from llmctl.tokenizers import Tokenizer

SEQ2SEQ, ENCODER_FIELD, DECODER_FIELD = "llmctl-seq2seq", "encoder", "decoder"
"""The ``model_type`` of a GPT with a decoder attached, and the fields that describe each."""


class Overlay(Protocol):
    """What was learned beside a model that stays as it is."""

    @property
    def tokenizer(self) -> Path | None:
        """A folder with another tokenizer than the model's, if there is one."""
        ...

    def weights(self, base: Weights, spec: ModelSpec, config: Any) -> Weights:
        """The model's tensors with what was learned."""
        ...

    def description(
        self, fields: Mapping[str, Any], spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, Any]:
        """The fields of config.json of both together."""
        ...


def read_folder(path: Path, overlay: Overlay | None = None) -> Pretrained:
    """The model of a folder, or what it is together with an ``overlay``.

    Raises InputError naming the file that is missing or malformed.
    """
    config_path = path / "config.json"
    fields = read_json_object(config_path, AGAIN)
    pair = fields.get("model_type") == SEQ2SEQ
    described, spec = _described(config_path, fields)
    try:
        packing = packing_of(described)
        weights = weights_of(path, INTEGER_PARTS if packing else None)
        if packing:
            described = {key: described[key] for key in described if key != QUANTIZATION}
            weights = PackedWeights(weights, packing, spec.weights[HUGGING_FACE])
        config = spec.from_hugging_face(described)
        if overlay is not None:
            weights = overlay.weights(weights, spec, config)
            fields = dict(overlay.description(fields, spec, weights.shapes))
        purpose = Purpose("seq2seq") if pair else purpose_of(fields, spec, weights.shapes)
        _check_lengths(fields)
    except (FieldError, PurposeError) as error:
        raise InputError(f"{config_path}: {error}") from None
    tokenizer = tokenizers.load((overlay and overlay.tokenizer) or path)
    _check_vocabulary(path, tokenizer, config.vocab_size)
    if TOKENIZER in fields:
        check_tokenizer(path, tokenizer, fields[TOKENIZER])
    kind = purpose.kind or spec.usual_head
    try:
        check_sizes(config, weights.shapes)
        config = spec.complete(config, weights)
        if not pair and purpose.kind is not None:
            heads = _beside(spec, kind, replaced=overlay is not None)
            check_body(spec, config, weights.shapes, heads)
        decoder = _decoder(fields[DECODER_FIELD], len(weights)) if pair else None
        attached = decoder and config.replace(
            num_layers=decoder.decoder_layers or config.num_layers
        )
        tensors = import_model(weights, kind, spec, config, attached)
        labelled = purpose.kind in HEADS and HEADS[purpose.kind].has_labels
        if labelled and CLASSES not in tensors:
            raise ValueError("it has no layer that gives classes")
    except (KeyError, ValueError) as error:
        raise not_the_model(weights.files[0], error) from None
    return Pretrained(
        path=path,
        files=(config_path, *(sorted(path.glob("*.safetensors")) or weights.files)),
        fields=fields,
        config=config,
        tokenizer=_as_trained(tokenizer, fields, spec, config, purpose),
        purpose=purpose,
        tensors=tensors,
        architecture=spec,
        decoder=decoder,
        quantised=weights.matrices(config, kind) if isinstance(weights, PackedWeights) else {},
    )


def _beside(spec: ModelSpec, kind: str, *, replaced: bool) -> set[str]:
    """Names of the tensors that may stand beside a network's body: those of its head, and beside a
    body that none stands on whatever transformers keeps there, as it does BERT's pooler. replaced:
    whether another head may have stood there."""
    names = spec.weights[HUGGING_FACE]
    bare = replaced or (kind in HEADS and not HEADS[kind].has_tensors)
    return {name for each in (names.heads if bare else [kind]) for name in names.head_names(each)}


def _described(path: Path, fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], ModelSpec]:
    """The fields that describe the backbone, and its architecture."""
    described = fields
    if fields.get("model_type") == SEQ2SEQ:
        parts = fields.get(ENCODER_FIELD), fields.get(DECODER_FIELD)
        if not all(isinstance(part, dict) for part in parts):
            raise InputError(f"{path} is damaged: it describes no {SEQ2SEQ}")
        described = fields[ENCODER_FIELD]
    kind = described.get("model_type")
    if kind not in list(BY_MODEL_TYPE):  # which a list, that has no hash, can be asked of
        hint = did_you_mean(str(kind), BY_MODEL_TYPE)
        raise InputError(
            f"{path}: model_type {kind!r} is not supported{hint}; known: {', '.join(BY_MODEL_TYPE)}"
        )
    return described, BY_MODEL_TYPE[kind]


def _decoder(fields: Mapping[str, Any], tensors: int) -> Seq2SeqShape:
    """What is attached. Raises KeyError or ValueError where it is no such thing."""
    layers, attends = fields["num_layers"], fields["cross_attention"]
    shape = Seq2SeqShape(decoder_layers=layers, cross_attention=attends)
    if shape.decoder_layers > tensors:
        raise ValueError(f"a decoder of {shape.decoder_layers:,} blocks")
    return shape


def _as_trained(
    tokenizer: Tokenizer, fields: Mapping[str, Any], spec: ModelSpec, config: Any, purpose: Purpose
) -> Tokenizer:
    """A tokenizer that puts around a text what the model was trained on.

    Its own files say it, but for those that can't and for folders of llmctl from before they did.
    """
    if tokenizer.keeps_layout and (TASK in fields or TOKENIZER not in fields):
        return tokenizer
    if spec.kind == "encoder":
        return tokenizer.for_encoder(segments=config.pairs_by_segments)
    if spec.kind == "encoder-decoder":
        return tokenizer.for_texts(opens=spec.build.opens_texts)
    if TOKENIZER not in fields or not {"bos", "eos"} <= tokenizer.special.keys():
        return tokenizer
    return tokenizer.for_decoder(pairs=purpose.kind == "classify")


def _check_lengths(fields: Mapping[str, Any]) -> None:
    """Raises FieldError unless the lengths that only llmctl writes are some."""
    for name in (MAX_LENGTH, MAX_SOURCE, MAX_TARGET):
        value = fields.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FieldError(f"{name} is {shown(value)}, not a number of tokens; {AGAIN}")


def _check_vocabulary(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises InputError if a tokenizer has more pieces than the model has rows.

    Others pad their vocabularies, so a model of theirs may have more rows than pieces, and so has
    what is finetuned from it.
    """
    if (pieces := tokenizer.vocab_size) > vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {pieces} pieces and the model {vocab_size}; they don't "
            "belong together: copy the tokenizer again from where the model was made"
        )
