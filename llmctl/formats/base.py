"""What a format of model folders is, and what it gives: a model that was trained, not yet read.

A **format** recognises its folders, opens them and writes them; ``llmctl.formats.FORMATS`` is the
table of those that there are. What it opens is a ``Pretrained``, which is the same whatever the
folder looked like: stages and tasks know nothing else. A format says what a tensor is called in our
networks, and reads it when it is looked up; networks are built here, on demand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from llmctl.errors import InputError
from llmctl.formats.description import (
    MAX_LENGTH,
    MAX_SOURCE,
    MAX_TARGET,
    MODEL_KINDS,
    NEXT_TOKEN_KINDS,
    STYLE,
    Purpose,
    PurposeError,
    names_of_labels,
)
from llmctl.formats.filling import Placement, fill, fill_network
from llmctl.formats.frames import frame_in
from llmctl.models.heads import HEADS, seq2seq
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import CLASSES, Classifier
from llmctl.models.heads.embed import Embedder
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.gpt_bert import GptBertHead
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.setfit import PooledClassifier
from llmctl.models.layers.initialisation import undrawn
from llmctl.models.layers.quantised_matrix import READ_QUANTISED, QuantisedMatrix
from llmctl.models.layers.virtual_tokens import VirtualShape, VirtualTokens
from llmctl.models.ngram.arrays import model_of
from llmctl.models.ngram.model import NgramModel
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.frames import Frame
from llmctl.workspace.files import sha256_file, sha256_json

Net = TypeVar("Net", bound=nn.Module)


class Format(Protocol):
    """One way of keeping models in folders."""

    name: str

    def recognises(self, path: Path) -> bool:
        """Whether a path holds a model kept so, as far as can be told at a glance."""
        ...

    def open(self, path: Path) -> Pretrained:
        """The model of a path, without reading its tensors.

        Raises InputError naming the file that is missing, malformed or not the model's.
        """
        ...

    def save(
        self, folder: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Write a trained model. extra: further fields of its description."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model that was trained, here or elsewhere: what it is, and where its tensors are."""

    path: Path
    """Its folder."""
    files: Sequence[Path]
    """What it is made from, the tokenizer's files apart: its description, then its tensors."""
    fields: Mapping[str, Any]
    """The description: config.json, where it has one."""
    config: Any
    """Our configuration of the backbone, or of the n-grams."""
    tokenizer: Tokenizer
    """What it puts around a text is what the model was trained on."""
    purpose: Purpose
    tensors: Mapping[str, Tensor]
    """In our networks' names, those of the backbone behind ``body.``. None is read before it is
    looked up."""
    architecture: ModelSpec | None = None
    """None: the model has no network."""
    decoder: seq2seq.Seq2SeqShape | None = None
    """What the decoder is like, of a model with one attached."""
    virtual: VirtualShape | None = None
    """The virtual tokens that stand before its texts, if some do."""
    before: int = 0
    """How many these are, or will be once they are learned."""
    quantised: Mapping[str, Callable[[], QuantisedMatrix]] = field(default_factory=dict)
    """What reads each matrix that the folder keeps in whole numbers, by our name of it."""
    lie: Placement = Placement.ALIGNED
    """Where the weights of its networks lie."""

    @property
    def kind(self) -> str:
        """What the model does, one of ``MODEL_KINDS``.

        Raises InputError where it is nothing of these, and is of use to a finetuning alone."""
        if self.purpose.kind is None:
            raise InputError(
                f"{self.path} can't be used as it is: {self.purpose.reason}; finetune it, or take "
                "another"
            )
        return self.purpose.kind

    @property
    def described(self) -> str:
        """The kind in words."""
        return MODEL_KINDS[self.kind]

    @property
    def spec(self) -> ModelSpec:
        """The architecture. Raises InputError if the model has no network."""
        if self.architecture is None:
            raise InputError(f"{self.path} is {self.described}, which has no network")
        return self.architecture

    @property
    def writes_from_source(self) -> str | None:
        """How a model that was finetuned on pairs writes: ``decoder``, ``prefix``; else None."""
        style = self.fields.get(STYLE)
        return str(style) if style in ("decoder", "prefix") else None

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes or tags by number, if it answers with some.

        Raises InputError if they are not those of the classes that its weights have.
        """
        if self.kind not in HEADS or not HEADS[self.kind].has_labels:
            return None
        try:
            return names_of_labels(self.fields, len(self.tensors[CLASSES]))
        except PurposeError as error:
            raise InputError(f"{self.files[0]}: {error}") from None

    @property
    def max_length(self) -> int:
        """Tokens of text that the model was trained on, or can take."""
        most = self.longest_text
        length = self.fields.get(MAX_LENGTH)
        return min(length, most) if isinstance(length, int) else most

    @property
    def longest_text(self) -> int:
        """Tokens of text that fit into its context, beside virtual ones."""
        return int(self.config.max_positions) - self.before

    @property
    def max_source(self) -> int:
        """Tokens of a source that the model was finetuned on."""
        return int(self.fields.get(MAX_SOURCE, self.max_length))

    @property
    def max_target(self) -> int:
        """Tokens of a target at most."""
        return int(self.fields.get(MAX_TARGET, self.max_length))

    @property
    def end_padding(self) -> int | None:
        """The token that a decoder's classifier takes for padding at a text's end: it looks at the
        last one before. None: at the last one, whatever it is."""
        pad = self.fields.get("pad_token_id")
        return pad if self.spec.kind == "decoder" and type(pad) is int else None

    @cached_property
    def frame(self) -> Frame:
        """What stands around sources and targets, of a model that writes from sources.

        Raises InputError if the tokenizer has no tokens for it.
        """
        if self.spec.kind == "encoder-decoder":
            return frame_in(self.path, self.fields, self.tokenizer)
        start, end = self.boundaries
        return Frame((), (end,), (start,), (end,))

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

    def digest(self) -> str:
        """The digest of all that decides what the model answers."""
        files = [sha256_file(path) for path in self.files]
        return sha256_json([*files, self.tokenizer.digest(), *self.tokenizer.said_beside()])

    def owning(self) -> Pretrained:
        """The model whose networks have weights of their own, for what is trained and for what
        outlives its files; those of others may lie in the pages of a file."""
        return replace(self, lie=Placement.OWN)

    def anywhere(self) -> Pretrained:
        """The model whose networks' weights lie wherever they begin in a file, for what ``prepare``
        of llmctl/inference/weights.py gives another form; one that is ``owning`` stays so."""
        return self if self.lie is Placement.OWN else replace(self, lie=Placement.ANYWHERE)

    def network(self) -> Any:
        """The model as it was trained, whatever it does: a network of llmctl/models/heads, or the
        tables of an n-gram model."""
        if self.kind in HEADS and self.decoder is None:
            return self.with_head(self.kind)
        return self.ngram() if self.kind == "ngram" else self.seq2seq()

    def with_head(self, kind: str, *, dropout: float | None = None) -> Any:
        """The backbone with a head of the table ``HEADS``, and with another dropout where it is
        given, as to be trained. Raises InputError where there are no tensors for the head."""
        with self._fitting():
            head = HEADS[kind]
            fresh = [name for name in head.optional if name not in self.tensors]
            with contextlib.nullcontext() if fresh else undrawn():
                body = self._built(self.config_with(dropout))
                model = head.build_described(body, self.tensors, self.fields)
            return self._filled(model, fresh, Placement.OWN if dropout is not None else self.lie)

    def ngram(self) -> NgramModel:
        """The tables of an n-gram model. Raises InputError if it is none."""
        if self.kind != "ngram":
            raise InputError(f"{self.path} is {self.described}, and no n-gram model")
        with self._fitting():
            arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}
            return model_of(arrays, self.config, self.tokenizer.vocab_size)

    def causal_lm(self, *, dropout: float | None = None) -> CausalLM:
        """The model with its output layer, and with another dropout where it is given.

        Raises InputError if it doesn't predict next tokens.
        """
        if self.kind not in NEXT_TOKEN_KINDS:
            raise InputError(
                f"{self.path} is {self.described}, and doesn't write text; give a GPT, a "
                "Llama or a nanochat model"
            )
        model: CausalLM = self.with_head(self.kind, dropout=dropout)
        return model

    def seq2seq(self, *, dropout: float = 0.0) -> seq2seq.Seq2Seq | EncoderDecoderLM:
        """The encoder–decoder, or the GPT with its decoder. Raises InputError if it has none."""
        if self.spec.kind == "encoder-decoder":
            model: EncoderDecoderLM = self.with_head("seq2seq", dropout=dropout)
            return model
        if self.decoder is None:
            raise InputError(
                f"{self.path} is {self.described} without a decoder attached; finetune it: "
                "llmctl finetune --task seq2seq"
            )
        with self._fitting():
            return self._filled(seq2seq.build(self.config_with(dropout), self.decoder, self.spec))

    def masked_lm(self) -> MaskedLM:
        """The model with the heads of pretraining. Raises InputError if it has none."""
        if self.spec.kind != "encoder" or not self.kind:
            raise InputError(
                f"{self.path} is no masked language model but a {self.spec.name}; give a "
                "pretrained BERT"
            )
        model: MaskedLM = self.with_head("masked_lm")
        return model

    def classifier(self) -> Classifier | PooledClassifier:
        """The model with its classification head. Raises InputError if it has none."""
        if self.kind not in ("classify", "setfit"):
            raise InputError("the model is not a classifier; give --from a finetuned run")
        model: Classifier | PooledClassifier = self.with_head(self.kind)
        return model

    def new_classifier(self, num_classes: int, *, dropout: float, scratch: bool) -> Classifier:
        """The model with a new layer for other classes."""
        return self.with_new_layer(
            lambda body: Classifier(body, num_classes, dropout=dropout), dropout, scratch=scratch
        )

    def with_new_layer(
        self, build: Callable[[Backbone], Net], dropout: float, *, scratch: bool
    ) -> Net:
        """A network on the backbone, and on a pooler or a transform that there is, with a new
        ``output``; with random weights from ``scratch``."""
        with self._fitting():
            model = build(self._reader(dropout))
            kept = {} if scratch else model.state_dict()
            for name in [name for name in kept if not name.startswith("body.")]:
                if name.startswith("output.") or name not in self.tensors:
                    del kept[name]
            fill(kept, self.tensors)
            return model

    def backbone(self, *, dropout: float | None = None, scratch: bool = False) -> Backbone:
        """The backbone alone, for a new head; with random weights from ``scratch``."""
        with self._fitting():
            body = self._reader(dropout)
            if not scratch:
                fill({f"body.{name}": own for name, own in body.state_dict().items()}, self.tensors)
            return body

    def embedder(self) -> Embedder:
        """The model that makes vectors of texts. Raises InputError if it makes none."""
        if self.kind != "embed":
            raise InputError(
                f"{self.path} is {self.described}, and makes no vectors of texts; finetune it: "
                "llmctl finetune --task embed"
            )
        model: Embedder = self.with_head("embed")
        return model

    def _reader(self, dropout: float | None) -> Backbone:
        """The backbone as it reads whole texts: both ways, where it has learned to."""
        config = self.config_with(dropout)
        if self.purpose.kind == GptBertHead.kind:
            config = config.replace(bidirectional=True)
        return self._built(config)

    def config_with(self, dropout: float | None) -> Any:
        """The backbone's configuration with another dropout, where one is given and it has any."""
        has_dropout = dropout is not None and "dropout" in type(self.config).model_fields
        return self.config.replace(dropout=dropout) if has_dropout else self.config

    def _built(self, config: Any) -> Backbone:
        body = self.spec.build(config)
        if self.virtual is not None:
            body.put_before_texts(VirtualTokens(self.virtual))
        return body

    def _filled(
        self, model: Net, without: Sequence[str] = (), lie: Placement = Placement.OWN
    ) -> Net:
        fill_network(model, self.tensors, without, lie)
        for name in self.quantised.keys() & model.state_dict().keys():
            # What gives a layer another form may take the numbers as they are.
            part = model.get_submodule(name.removesuffix(".weight"))
            setattr(part, READ_QUANTISED, self.quantised[name])
        return model

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Weights of another shape than the description says are an InputError."""
        try:
            yield
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            raise not_the_model(
                self.files[min(1, len(self.files) - 1)], " ".join(str(error).split())
            ) from None


def not_the_model(file: Path, reason: object) -> InputError:
    """A file holds other tensors than the description beside it says."""
    return InputError(
        f"{file} is not the model that config.json describes ({reason}); copy the whole folder "
        "again from where it was made"
    )
