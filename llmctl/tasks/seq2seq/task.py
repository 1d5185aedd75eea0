"""Finetune on pairs of texts: a GPT to a translator or summariser, by a decoder or a prefix."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.config import NOT_IDENTITY, ColumnName
from llmctl.data.random import key_of, permute
from llmctl.data.tables.parallel_text import read_pairs, resolve_pair_columns
from llmctl.data.text.decoding import ReadConfig
from llmctl.data.text.hashing import is_held_out
from llmctl.data.text.input_files import data_record
from llmctl.errors import ConfigError, InputError
from llmctl.evaluation.overlap import length_in_words
from llmctl.formats.base import Pretrained
from llmctl.formats.columns import pair_record
from llmctl.formats.description import (
    COLUMNS,
    LEAD_WORDS,
    MAX_LENGTH,
    MAX_SOURCE,
    MAX_TARGET,
    NEXT_TOKEN_KINDS,
    STYLE,
)
from llmctl.formats.frames import START_FIELD
from llmctl.formats.huggingface.tensors import ENCODER, export_model
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads import seq2seq
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.seq2seq import Seq2SeqShape
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.finetuning import (
    METHOD_FACTOR,
    FinetuneConfig,
    FinetuningTask,
    Method,
    scale_lr_by_width,
)
from llmctl.tasks.seq2seq.batches import EncodedPair, collated, encode
from llmctl.tasks.seq2seq.loss import seq2seq_loss
from llmctl.training.batches import LossParts, TensorBatch
from llmctl.training.config import TrainingConfig
from llmctl.workspace.manifests import InputRecord

Style = Literal["decoder", "prefix"]

PAIR_BUCKET_BATCHES = 256
"""Batches whose pairs are sorted by length among themselves, so that little is padding."""


class Seq2SeqData(ReadConfig):
    """Where pairs stand, and what is held out."""

    target: Path | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """The file whose line n goes with line n of the data."""
    source_column: ColumnName | None = None
    """The source's column in a table. Unset: an obvious one, named on stderr."""
    target_column: ColumnName | None = None
    """The target's column in a table. Unset: an obvious one, named on stderr."""
    validation: float = Field(0.02, ge=0, lt=1)
    """Share of the pairs, chosen by the source's hash, for early stopping."""
    max_source: int = Field(0, ge=0)
    """Tokens of a source; longer ones are cut. 0: as pretrained."""
    max_target: int = Field(0, ge=0)
    """Tokens of a target; longer ones are cut. 0: as pretrained."""


class Seq2SeqConfig(FinetuneConfig):
    """Everything that decides a finetuning on pairs."""

    task: Literal["seq2seq"] = "seq2seq"
    """What is learned."""
    style: Style = "decoder"
    """What writes the target. decoder: the GPT reads the source, and a Transformer decoder attached
    to it writes. prefix: the GPT does both, source and target in one sequence."""
    model: Seq2SeqShape = Seq2SeqShape()
    data: Seq2SeqData = Seq2SeqData()
    freeze_encoder: bool = False
    """The GPT stays as it is, with the embeddings that the decoder shares."""
    decoder_rate: float = Field(2.0, gt=0)
    """Factor of the learning rate for the decoder: what is new learns faster than what is
    pretrained."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Label smoothing ε: training's targets keep 1 - ε, and the rest is shared by all tokens."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the GPT and the decoder, where the architecture has any."""
    patience: int = Field(4, ge=0)
    """Validations without a better one before training stops; 0: never early."""
    training: TrainingConfig = TrainingConfig(
        epochs=10, batch_size=64, warmup=0.1, schedule="linear"
    )

    @model_validator(mode="after")
    def _check_style(self) -> Self:
        if self.style == "prefix" and self.model != Seq2SeqShape():
            raise ValueError("model.* describes the decoder, and --style prefix has none")
        if self.style == "prefix" and self.freeze_encoder:
            raise ValueError(
                "--freeze-encoder leaves nothing to train with --style prefix; leave one out"
            )
        if self.style == "prefix" and self.label_smoothing not in (0.0, 0.1):
            raise ValueError("label_smoothing goes with --style decoder")
        return self


class Seq2SeqTask(FinetuningTask):
    """Pairs as batches of like length, and the network to train on them."""

    config: Seq2SeqConfig
    config_type = Seq2SeqConfig
    lacks = "and doesn't write text; --task seq2seq needs a GPT, a Llama or a nanochat model"
    backbones = ("decoder", "encoder-decoder")

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: Seq2SeqConfig,
        *,
        start: str,
        reporter: Reporter,
    ) -> None:
        if config.style == "prefix" and base.kind == "seq2seq":
            raise ConfigError(
                f"--style prefix puts both texts into one sequence, and {start} is "
                f"{base.described}, which has a decoder for the second; leave --style out"
            )
        super().__init__(data, base, config, start=start)
        most = base.longest_text
        for name in ("max_source", "max_target"):
            if getattr(config.data, name) > most:
                raise ConfigError(f"data.{name} is beyond the model's context; use at most {most}")
        self._whole = base.spec.kind == "encoder-decoder"
        if self._whole and config.model != Seq2SeqShape():
            raise ConfigError(
                f"model.* is for a GPT that learns to write from sources, and a {base.spec.name} "
                "has its own decoder; leave it out"
            )
        self._frame = base.frame
        self._max_source = config.data.max_source or base.max_length
        self._max_target = config.data.max_target or base.max_length
        if config.style == "prefix":
            self._fit_prefix()
        self._read(data, reporter)
        self.train_examples, self.held_out_examples = len(self._train), len(self._held_out)
        self._lengths = np.asarray([pair.lengths for pair in self._train])
        self._window = lru_cache(maxsize=2)(self._make_window)

    def _fit_prefix(self) -> None:
        """Source and target share the context: each has half, or what the other leaves."""
        most, data = self.base.longest_text, self.config.data
        if not data.max_target:
            self._max_target = most - self._max_source if data.max_source else most // 2
        if not data.max_source:
            self._max_source = most - self._max_target
        if self._max_source + self._max_target > most:
            raise ConfigError(
                f"data.max_source and data.max_target together are beyond the model's context of "
                f"{most} tokens, which --style prefix puts both into"
            )

    def _read(self, data: Path, reporter: Reporter) -> None:
        """Fill ``_train`` and ``_held_out`` from a file. Raises InputError if nothing is left."""
        self._train: list[EncodedPair] = []
        self._held_out: list[EncodedPair] = []
        options, what = self.config.data, Counter[str]()
        reading = options.read_options(reporter.note)
        columns = self._columns = resolve_pair_columns(
            data,
            source_column=options.source_column,
            target_column=options.target_column,
            reading=reading,
        )
        if columns is not None:
            reporter.note(f"{data.name}: {columns.describe()}")
        for pair in read_pairs(
            data,
            target_file=options.target,
            source_column=options.source_column,
            target_column=options.target_column,
            reading=reading,
        ):
            what["read"] += 1
            if not pair.source or not pair.target:
                what["empty"] += 1
                continue
            encoded = self._encoded(pair.source, pair.target, what)
            held_out = is_held_out(pair.source, options.validation)
            (self._held_out if held_out else self._train).append(encoded)
        if what["empty"]:
            reporter.note(f"left out {what['empty']:,} pairs of which one text is empty")
        if not self._train:
            raise InputError(
                f"{data}: every pair fell to validation; give more pairs"
                if self._held_out
                else f"{data} has no pair of two texts that are not empty"
            )
        self._lead_words = max(1, round(what["words"] / (what["read"] - what["empty"])))
        most = self.base.longest_text
        for name, limit, other in (
            ("source", self._max_source, self._max_target),
            ("target", self._max_target, self._max_source),
        ):
            # With --style prefix both share the context: one grows as far as the other is cut.
            shared = f" together with data.max_{'target' if name == 'source' else 'source'}"
            shared = shared if self.config.style == "prefix" and limit + other >= most else ""
            more = f"--set data.max_{name}=… reads more, up to {most}{shared}"
            if what[name]:
                reporter.note(
                    f"{what[name]:,} of {what['read']:,} {name}s are longer than {limit} tokens "
                    f"and were cut; {more if limit < most else 'more the network does not take'}"
                )

    def _encoded(self, source: str, target: str, what: Counter[str]) -> EncodedPair:
        """A pair as ids; what had to be cut is counted."""
        source_ids, target_ids = map(self.base.tokenizer.encode, (source, target))
        what["source"] += self._frame.source_cut(len(source_ids), self._max_source)
        what["target"] += self._frame.target_cut(len(target_ids), self._max_target)
        what["words"] += length_in_words(target)
        return encode(
            source_ids, target_ids,
            frame=self._frame,
            max_source=self._max_source, max_target=self._max_target,
        )  # fmt: skip

    @classmethod
    def kinds(cls, config: Seq2SeqConfig) -> tuple[str, ...]:
        # One with a decoder attached can learn more pairs.
        return (*NEXT_TOKEN_KINDS, "seq2seq")

    @classmethod
    def further_inputs(cls, config: Seq2SeqConfig) -> list[InputRecord]:
        return [data_record(config.data.target, "target")] if config.data.target else []

    @staticmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given: 1e-3 for a body up to 128 wide."""
        return scale_lr_by_width(1e-3 * METHOD_FACTOR[method], base.config.hidden_size)

    @property
    def introduction(self) -> str:
        tokens = self._lengths.sum(0)
        return (
            f"{self.train_examples:,} pairs to train on, {self.held_out_examples:,} held out; "
            f"{tokens[0]:,} tokens of sources, {tokens[1]:,} of targets"
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {
            MAX_SOURCE: self._max_source,
            MAX_TARGET: self._max_target,
            LEAD_WORDS: self._lead_words,
            # Two files of plain text have none.
            **({COLUMNS: pair_record(self._columns)} if self._columns else {}),
        }

    @property
    def new_parts(self) -> tuple[str, ...]:
        attached = self.config.style == "decoder" and not self._whole
        return ("decoder", "start") if attached else ()

    @property
    def peft_task(self) -> str:  # type: ignore[override]  # of other tasks it is always one
        # A decoder that has both texts in one sequence writes as it always did.
        one = self.config.style == "prefix" and not self._whole
        return "CAUSAL_LM" if one else "SEQ_2_SEQ_LM"

    @property
    def rate_scale(self) -> dict[str, float]:
        scale = super().rate_scale
        return {part: self.config.decoder_rate * scale.get(part, 1.0) for part in self.new_parts}

    def network(self) -> nn.Module:
        options, base = self.config, self.base
        if self._whole:
            return self._encoder_decoder()
        if base.kind == "seq2seq":
            return base.seq2seq(dropout=options.dropout)
        config = base.config_with(options.dropout)
        if options.style == "prefix":
            return (
                CausalLM(base.spec.build(config))
                if self.scratch
                else base.causal_lm(dropout=options.dropout)
            )
        if self.scratch:
            model = seq2seq.build(config, options.model, base.spec)
        else:
            gpt = base.causal_lm(dropout=options.dropout)
            model = seq2seq.attach(gpt, options.model, base.spec)
        if options.freeze_encoder:
            model.body.requires_grad_(False)
        return model

    def _encoder_decoder(self) -> EncoderDecoderLM:
        """A network that reads and writes by itself."""
        base, dropout = self.base, self.config.dropout
        if self.scratch:
            body: Any = base.backbone(dropout=dropout, scratch=True)
            model = EncoderDecoderLM(body)
        else:
            model = base.with_head("seq2seq", dropout=dropout)
        if self.config.freeze_encoder:
            for part in (model.body.embedding(), model.body.encoder):
                part.requires_grad_(False)
        return model

    def loss(self, model: Any, batch: Any) -> LossParts:
        return seq2seq_loss(model, batch, smoothing=self.config.label_smoothing)

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: ``batch_size`` random pairs of about the same length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        window, place = divmod(place, PAIR_BUCKET_BATCHES)
        return self._collated([self._train[n] for n in self._window(epoch, window)[place]])

    def _make_window(self, epoch: int, window: int) -> list[list[int]]:
        """The members of some consecutive batches of an epoch: sorted by length, dealt out, and
        shuffled as batches."""
        seed, size = self.config.seed, self.config.training.batch_size
        first = window * PAIR_BUCKET_BATCHES * size
        places = np.arange(first, min(first + PAIR_BUCKET_BATCHES * size, len(self._train)))
        members = permute(key_of(seed, "order", epoch), len(self._train), places)
        sources, targets = self._lengths[members].T
        members = members[np.lexsort((sources, targets))]
        batches = np.array_split(members, -(-len(members) // size))
        order = permute(
            key_of(seed, "batches", epoch, window), len(batches), np.arange(len(batches))
        )
        return [batches[n].tolist() for n in order]

    def validation_batches(self) -> list[TensorBatch]:
        size = self.config.training.batch_size
        pairs = sorted(self._held_out, key=lambda pair: pair.lengths[::-1])
        return [self._collated(pairs[begin : begin + size]) for begin in range(0, len(pairs), size)]

    def _collated(self, pairs: list[EncodedPair]) -> TensorBatch:
        return collated(pairs, self.config.style, self.base.tokenizer.token_bytes)

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        loss = values.get("target_loss", values.get("lm_loss", math.nan))
        return {**values, "perplexity": math.exp(loss)}

    def write(self, folder: Path, model: nn.Module) -> None:
        extra: dict[str, Any] = {STYLE: self.config.style, **self.facts}
        if self._whole:
            extra[START_FIELD] = self._frame.start[0]
        extra[MAX_LENGTH] = self.base.max_length
        write_model_folder(folder, model, self.base.tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        if not isinstance(model, seq2seq.Seq2Seq):
            return {}
        attached = model.decoder.body.config
        tensors = export_model(
            model.state_dict(), "seq2seq", self.base.spec, self.base.config, attached
        )
        return {name: t for name, t in tensors.items() if not name.startswith(ENCODER)}
