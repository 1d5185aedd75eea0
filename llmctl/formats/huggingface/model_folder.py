"""Model folders in Hugging Face's layout: config.json, model.safetensors and the tokenizer.

What llmctl trains is always kept like this, so ``transformers`` opens it with no export, and a
model made elsewhere can be given wherever a run is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from llmctl import tokenizers
from llmctl.errors import InputError, did_you_mean
from llmctl.formats.huggingface.purposes import (
    TASK,
    Purpose,
    PurposeError,
    names_of_labels,
    purpose_of,
)
from llmctl.formats.huggingface.weights import (
    AGAIN,
    WEIGHTS,
    Weights,
    check_body,
    check_sizes,
    weights_of,
)
from llmctl.models import ARCHITECTURES, BY_MODEL_TYPE
from llmctl.models.config_json import FieldError, shown
from llmctl.models.heads import causal_lm, classify, masked_lm, seq2seq
from llmctl.models.spec import ModelSpec
from llmctl.parsing import read_json_object
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import write_tensors

MAX_LENGTH, TOKENIZER, CHAT = "llmctl_max_length", "llmctl_tokenizer", "llmctl_chat"
"""Fields of config.json that only llmctl writes: tokens trained on, the tokenizer's digest, and
whether the model has learned to answer."""
STYLE, LEAD_WORDS = "llmctl_style", "llmctl_target_words"
MAX_SOURCE, MAX_TARGET = "llmctl_max_source", "llmctl_max_target"
"""Of models finetuned on pairs: how they write from a source, words of a target on average, and
tokens of both at most."""
COLUMNS = "llmctl_columns"
"""Of finetuned models: the columns of the table that they were trained on."""
SEQ2SEQ, ENCODER_FIELD, DECODER_FIELD = "llmctl-seq2seq", "encoder", "decoder"
"""model_type of a GPT with a decoder attached, and the fields that describe each."""


@dataclass(frozen=True)
class ModelFolder:
    """What lies in a model folder; tensors are in Hugging Face's names."""

    path: Path
    fields: dict[str, Any]
    """config.json."""
    architecture: ModelSpec
    config: Any
    """Our configuration of the body."""
    tensors: Weights
    tokenizer: Tokenizer
    """What it puts around a text is what the model was trained on."""
    purpose: Purpose

    @property
    def kind(self) -> str:
        """What the model does: ``classify``, ``seq2seq`` with a decoder attached, or as its
        pretraining, ``masked_lm`` or ``causal_lm``.

        Raises InputError where it is nothing of these, and is of use to a finetuning alone."""
        if self.purpose.kind is None:
            raise InputError(
                f"{self.path} can't be used as it is: {self.purpose.reason}; finetune it, or take "
                "another"
            )
        return self.purpose.kind

    @property
    def writes_from_source(self) -> str | None:
        """How a model that was finetuned on pairs writes: ``decoder``, ``prefix``; else None."""
        style = self.fields.get(STYLE)
        return str(style) if style in ("decoder", "prefix") else None

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes by number, if this is a classifier."""
        if self.kind != "classify":
            return None
        count = self.tensors.shapes[self.architecture.class_layer][0]
        try:
            return names_of_labels(self.fields, count)
        except PurposeError as error:
            raise InputError(f"{self.path / 'config.json'}: {error}") from None

    @property
    def max_length(self) -> int:
        """Tokens of text that the model was trained on, or can take."""
        most = int(self.config.max_positions)
        given = self.fields.get(MAX_LENGTH)
        return min(given, most) if isinstance(given, int) else most

    @property
    def end_padding(self) -> int | None:
        """The token that a decoder's classifier takes for padding at a text's end: it looks at the
        last one before. None: at the last one, whatever it is."""
        pad = self.fields.get("pad_token_id")
        return pad if self.architecture.kind == "decoder" and type(pad) is int else None

    @property
    def boundaries(self) -> tuple[int, int]:
        """The tokens at a text's start and end. Raises InputError if the tokenizer has none."""
        around = self.tokenizer.boundaries
        if around is None:
            raise InputError(
                f"{self.path}: the tokenizer has no tokens for a text's start and end, between "
                "which targets stand; take a model with a tokenizer of llmctl tokenize"
            )
        return around

    @property
    def max_source(self) -> int:
        """Tokens of a source that the model was finetuned on."""
        return self._tokens(MAX_SOURCE)

    @property
    def max_target(self) -> int:
        """And of a target."""
        return self._tokens(MAX_TARGET)

    def _tokens(self, field: str) -> int:
        given = self.fields.get(field)
        return given if isinstance(given, int) else self.max_length

    def causal_lm(self, *, dropout: float | None = None) -> causal_lm.CausalLM:
        """The model with its output layer, and with another dropout where it is given.

        Raises InputError if it doesn't predict next tokens.
        """
        if self.kind != "causal_lm":
            raise InputError(
                f"{self.path} is a {self.described()}, and doesn't write text; give a GPT, a "
                "Llama or a nanochat model"
            )
        with self._fitting():
            config = self.config if dropout is None else self.config_with(dropout)
            body = self.architecture.build(config)
            return causal_lm.from_hugging_face(body, self.tensors, self.architecture)

    def described(self) -> str:
        """The kind in words."""
        return {
            "classify": "classifier",
            "masked_lm": "masked language model",
            "causal_lm": "language model",
            "seq2seq": "model that writes from a source",
        }[self.kind]

    def seq2seq(self, *, dropout: float = 0.0) -> seq2seq.Seq2Seq:
        """The GPT with its decoder. Raises InputError if it has none."""
        if self.kind != "seq2seq":
            raise InputError(
                f"{self.path} is a {self.described()} without a decoder attached; finetune it: "
                "llmctl finetune --task seq2seq"
            )
        with self._fitting():
            decoder = self.fields[DECODER_FIELD]
            shape = seq2seq.Seq2SeqShape(
                decoder_layers=decoder["num_layers"], cross_attention=decoder["cross_attention"]
            )
            if shape.decoder_layers > len(self.tensors):
                raise ValueError(f"a decoder of {shape.decoder_layers:,} blocks")
            model = seq2seq.build(self.config_with(dropout), shape, self.architecture)
            seq2seq.from_tensors(model, self.tensors, self.architecture)
            return model

    def masked_lm(self) -> masked_lm.MaskedLM:
        """The model with the heads of pretraining. Raises InputError if it has none."""
        if self.architecture.kind != "encoder" or not self.kind:
            raise InputError(
                f"{self.path} is no masked language model but a {self.architecture.name}; give a "
                "pretrained BERT"
            )
        with self._fitting():
            body = self.architecture.build(self.config)
            return masked_lm.from_hugging_face(body, self.tensors, self.architecture)

    def classifier(self) -> classify.Classifier:
        """The model with its classification head. Raises InputError if it has none."""
        with self._fitting():
            body = self.architecture.build(self.config)
            return classify.from_hugging_face(body, self.tensors, self.architecture)

    def new_classifier(
        self,
        num_classes: int,
        *,
        dropout: float,
        scratch: bool,
    ) -> classify.Classifier:
        """The body with a new classification head, and with random weights from ``scratch``."""
        with self._fitting():
            return classify.start_from(
                self.architecture.build(self.config_with(dropout)),
                None if scratch else self.tensors,
                num_classes,
                self.architecture,
                dropout=dropout,
            )

    def config_with(self, dropout: float) -> Any:
        """The body's configuration with another dropout, where the body has any."""
        has_dropout = "dropout" in type(self.config).model_fields
        return self.config.replace(dropout=dropout) if has_dropout else self.config

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Weights of another shape than config.json says are an InputError."""
        try:
            yield
        except (RuntimeError, KeyError, ValueError) as error:
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            raise _not_the_model(self.path / WEIGHTS, " ".join(str(error).split())) from None


def write_model_folder(
    folder: Path, model: nn.Module, tokenizer: Tokenizer, extra: Mapping[str, Any]
) -> None:
    """Write a trained model. ``extra``: further fields of config.json.

    A GPT with a decoder attached has no class in transformers: the fields and tensors of each of
    the two are in Hugging Face's names.
    """
    body: Any = model.body
    config = body.config
    architecture = next(a for a in ARCHITECTURES.values() if type(config) is a.config)
    fields = architecture.to_hugging_face(config)
    beginning = BY_MODEL_TYPE[fields["model_type"]].class_prefix
    if isinstance(model, classify.Classifier):
        task, class_name = "classify", "ForSequenceClassification"
        tensors = classify.to_hugging_face(model, architecture)
    elif isinstance(model, causal_lm.CausalLM):
        task = "causal_lm"
        class_name = architecture.lm_class
        tensors = causal_lm.to_hugging_face(model, architecture)
    elif isinstance(model, masked_lm.MaskedLM):
        task = "masked_lm"
        class_name = "ForPreTraining" if model.next_sentence is not None else "ForMaskedLM"
        tensors = masked_lm.to_hugging_face(model, architecture)
    elif isinstance(model, seq2seq.Seq2Seq):
        task, beginning, class_name = "seq2seq", "Llmctl", "Seq2Seq"
        tensors = seq2seq.to_tensors(model, architecture)
        decoder = {
            "num_layers": model.decoder.body.config.num_layers,
            "cross_attention": model.attends,
        }
        fields = {"model_type": SEQ2SEQ, ENCODER_FIELD: fields, DECODER_FIELD: decoder}
    else:
        raise TypeError(f"no Hugging Face layout for {type(model).__name__}")
    folder.mkdir(parents=True, exist_ok=True)
    if architecture.kind == "encoder":
        tokenizer = tokenizer.for_encoder()
    ids = {f"{role}_token_id": tokenizer.special[role] for role in ("pad", "bos", "eos")
           if role in tokenizer.special}  # fmt: skip
    fields = {
        "architectures": [beginning + class_name],
        "dtype": "float32",
        **fields,
        **ids,
        TASK: task,
        TOKENIZER: tokenizer.digest(),
        **extra,
    }
    text = to_json(fields, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    if isinstance(model, causal_lm.CausalLM | seq2seq.Seq2Seq):
        ends = [tokenizer.special[r] for r in ("eos", "turn_end") if r in tokenizer.special]
        ends += sorted(tokenizer.further_ends.difference(ends))
        generation = {**ids, "eos_token_id": ends}
        text = to_json(generation, indent=2) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    write_tensors(folder / WEIGHTS, tensors)
    tokenizer.save(folder, max_length=config.max_positions)


def read_model_folder(path: Path) -> ModelFolder:
    """Read a model folder. Raises InputError naming the file that is missing or malformed."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise InputError(f"{path} has no config.json; give a model's folder or a run's name")
    fields = read_json_object(config_path, AGAIN)
    described = fields
    if fields.get("model_type") == SEQ2SEQ:
        parts = fields.get(ENCODER_FIELD), fields.get(DECODER_FIELD)
        if not all(isinstance(part, dict) for part in parts):
            raise InputError(f"{config_path} is damaged: it describes no {SEQ2SEQ}")
        described = fields[ENCODER_FIELD]
    kind = described.get("model_type")
    if kind not in list(BY_MODEL_TYPE):  # which a list, that has no hash, can be asked of
        hint = did_you_mean(str(kind), BY_MODEL_TYPE)
        raise InputError(
            f"{config_path}: model_type {kind!r} is not supported{hint}; "
            f"known: {', '.join(BY_MODEL_TYPE)}"
        )
    architecture = BY_MODEL_TYPE[kind]
    weights = weights_of(path)
    try:
        config = architecture.from_hugging_face(described)
        purpose = Purpose("seq2seq")
        if fields is described:
            purpose = purpose_of(fields, architecture, weights.shapes)
        _check_lengths(fields)
    except (FieldError, PurposeError) as error:
        raise InputError(f"{config_path}: {error}") from None
    tokenizer = tokenizers.load(path)
    _check_tokenizer(path, tokenizer, config.vocab_size, fields)
    try:
        check_sizes(config, weights.shapes)
        if fields is described and purpose.kind is not None:
            heads = architecture.head_names(purpose.kind)
            check_body(architecture, config, weights.shapes, heads)
            if purpose.kind == "classify" and architecture.class_layer not in weights.shapes:
                raise ValueError("it has no layer that gives classes")
    except ValueError as error:
        raise _not_the_model(weights.files[0], error) from None
    tokenizer = _as_trained(tokenizer, fields, architecture, purpose)
    return ModelFolder(path, fields, architecture, config, weights, tokenizer, purpose)


def _as_trained(
    tokenizer: Tokenizer, fields: Mapping[str, Any], architecture: ModelSpec, purpose: Purpose
) -> Tokenizer:
    """A tokenizer that puts around a text what the model was trained on.

    Its own files say it, but for those that can't and for folders of llmctl from before they did.
    """
    if tokenizer.keeps_layout and (TASK in fields or TOKENIZER not in fields):
        return tokenizer
    if architecture.kind == "encoder":
        return tokenizer.for_encoder()
    if TOKENIZER not in fields or not {"bos", "eos"} <= tokenizer.special.keys():
        return tokenizer
    return tokenizer.for_decoder(pairs=purpose.kind == "classify")


def _not_the_model(file: Path, reason: object) -> InputError:
    return InputError(
        f"{file} is not the model that config.json describes ({reason}); copy the whole folder "
        "again from where it was made"
    )


def _check_lengths(fields: Mapping[str, Any]) -> None:
    """Raises FieldError unless the lengths that only llmctl writes are some."""
    for name in (MAX_LENGTH, MAX_SOURCE, MAX_TARGET):
        value = fields.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FieldError(f"{name} is {shown(value)}, not a number of tokens; {AGAIN}")


def _check_tokenizer(
    path: Path, tokenizer: Tokenizer, vocab_size: int, fields: Mapping[str, Any]
) -> None:
    """Raises InputError if the model was trained with another tokenizer, as far as can be told.

    Others pad their vocabularies, so a model of theirs may have more rows than pieces, and so has
    what is finetuned from it.
    """
    if (pieces := tokenizer.vocab_size) > vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {pieces} pieces and the model {vocab_size}; they don't "
            "belong together: copy the tokenizer again from where the model was made"
        )
    if fields.get(TOKENIZER, digest := tokenizer.digest()) != digest:
        raise InputError(
            f"{path}: the tokenizer is not the one that the model was trained with (its digest "
            "differs from config.json's); they don't belong together: copy it again from where "
            "the model was made"
        )
