"""Finetuning on single texts or pairs of them, each with one label: what classification and
regression share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from llmctl.data.tables.encoded import SHORTEST_TEXT, encode_examples, pad_token
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import LabelledColumns, is_held_out, resolve_labelled
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.columns import labelled_record
from llmctl.formats.description import COLUMNS, MAX_LENGTH
from llmctl.models.heads.classify import parts_on
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.buckets import bucketed
from llmctl.tasks.classify.batches import collate
from llmctl.tasks.finetuning import FinetuningTask, Method, careful_peak_rate
from llmctl.training.batches import TensorBatch

EVAL_BATCH_SIZE = 64
"""Held-out examples in a batch."""


class ExamplesData(LabelledColumns):
    """Which columns hold what, and what is held out."""

    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the examples, chosen by their text's hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of an example, special ones included; longer ones are cut. 0: as pretrained."""

    @field_validator("max_length")
    @classmethod
    def _not_too_short(cls, value: int) -> int:
        if 0 < value < SHORTEST_TEXT:
            raise ValueError(f"use {SHORTEST_TEXT} or more, or 0 for as many as in pretraining")
        return value


class ExamplesTask(FinetuningTask):
    """Labelled examples as padded batches."""

    config: Any
    peft_task: ClassVar[str] = "SEQ_CLS"

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: Any,
        *,
        start: str,
        reporter: Reporter,
    ) -> None:
        super().__init__(data, base, config, start=start)
        self._causal = base.spec.kind == "decoder"
        reading = config.data.read_options(reporter.note)
        self._columns = resolve_labelled(data, config.data, reading)
        reporter.note(f"{data.name}: {self._columns.describe()}")
        examples = self._read(reporter, reading)
        numbers = self._numbers(examples)
        self._max_length = self.text_length(config.data.max_length)
        self._pad = pad_token(base.tokenizer)
        tokenizer = base.tokenizer
        if not self._causal and not {"cls", "sep"} <= tokenizer.special.keys():
            raise InputError(
                "the tokenizer has no tokens for cls and sep, which stand around a text to be "
                "classified; use a model that has them"
            )
        # What the folder says to transformers, texts are given here.
        self._tokenizer = (
            tokenizer.for_decoder(pairs=True)
            if self._causal
            else tokenizer.for_encoder(segments=base.config.pairs_by_segments)
        )
        self._train, self._held_out = self._encoded(examples, numbers)
        self._tell_cut(reporter)
        if not self._train:
            raise InputError("every example fell to validation; give more examples")
        self.train_examples, self.held_out_examples = len(self._train), len(self._held_out)
        lengths = np.asarray([len(example.ids) for example in self._train])
        size, seed = config.training.batch_size, config.seed
        self._epoch = lru_cache(maxsize=2)(partial(bucketed, lengths, size, seed))

    @abstractmethod
    def _read(self, reporter: Reporter, reading: ReadOptions) -> list[Example]:
        """The examples of the file. Raises InputError if there are none."""

    @abstractmethod
    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, float]:
        """What each label is to the loss. Raises InputError where they can't be learned."""

    def _encoded(
        self, examples: Sequence[Example], numbers: Mapping[str, float]
    ) -> tuple[list[Any], list[Any]]:
        """The examples to train on, and those held out."""
        encoded = encode_examples(
            self._tokenizer,
            examples,
            self._max_length,
            numbers,
            pad=self._pad if self._causal else None,
        )
        share = self.config.data.validation
        held = [is_held_out(example, share) for example in examples]
        return (
            [e for e, out in zip(encoded, held, strict=True) if not out],
            [e for e, out in zip(encoded, held, strict=True) if out],
        )

    def _tell_cut(self, reporter: Reporter) -> None:
        """Say how many texts were longer than what is read of them."""
        encoded = [*self._train, *self._held_out]
        cut = sum(example.cut for example in encoded)
        if not cut:
            return
        limit, most = self._max_length, self.base.longest_text
        why = "" if self.config.data.max_length else " of the pretraining"
        more = (
            f"--set data.max_length=… reads more, up to {most}"
            if limit < most
            else "more the network does not take"
        )
        reporter.note(
            f"{cut:,} of {len(encoded):,} texts were longer than the {limit} tokens{why} and were "
            f"cut; {more}"
        )

    @staticmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given."""
        return careful_peak_rate(base, method, scratch=scratch)

    @property
    def new_parts(self) -> tuple[str, ...]:
        return parts_on(self.base.spec.build, self.base.config)

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: random examples of like length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._collated([self._train[i] for i in self._epoch(epoch)[place]])

    def validation_batches(self) -> list[TensorBatch]:
        ordered = sorted(self._held_out, key=lambda example: len(example.ids))
        return [
            self._collated(ordered[i : i + EVAL_BATCH_SIZE])
            for i in range(0, len(ordered), EVAL_BATCH_SIZE)
        ]

    def _collated(self, examples: Sequence[Any]) -> TensorBatch:
        """Some examples as a batch."""
        return collate(examples, self._pad)

    @property
    def folder_fields(self) -> dict[str, Any]:
        """Fields of the description that say how texts are read."""
        return {
            "classifier_dropout": self.config.dropout,
            # By which transformers finds the last token of a text.
            "pad_token_id": self._pad,
            MAX_LENGTH: self._max_length,
            COLUMNS: labelled_record(self._columns),
        }


def class_labels(counts: Collection[str]) -> list[str]:
    """Label names in order. Raises InputError where there is nothing to tell apart."""
    labels = labels_in_order(counts)
    if len(labels) < 2:
        raise InputError(
            f"the label column has one class only ({labels[0]!r}); a classifier needs "
            "two or more: check --label-column"
        )
    return labels


def counted_labels(labels: Sequence[str], counts: Mapping[str, int]) -> str:
    """The first labels with how often each comes, in words."""
    shown = ", ".join(f"{label} {counts[label]}" for label in labels[:8])
    return shown + (f", … ({len(labels)} classes)" if len(labels) > 8 else "")


def labels_in_order(counts: Collection[str]) -> list[str]:
    """Label names in order: by number if all are numbers, else by the alphabet."""
    try:
        numbers = {label: float(label) for label in counts}
    except ValueError:
        return sorted(counts)
    if any(map(math.isnan, numbers.values())):  # nan has no place among numbers
        return sorted(counts)
    return sorted(counts, key=lambda label: (numbers[label], label))
