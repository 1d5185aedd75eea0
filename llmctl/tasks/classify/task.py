"""Finetune a classifier: labelled texts to their classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from llmctl.data.tables.encoded import EncodedExample, encode_examples, pad_token
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import (
    LabelledColumns,
    is_held_out,
    read_labelled,
    resolve_labelled,
)
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.columns import labelled_record
from llmctl.formats.description import COLUMNS, MAX_LENGTH
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.classify import Classifier, parts_on
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.buckets import bucketed
from llmctl.tasks.classify.batches import ExampleBatch, collate
from llmctl.tasks.classify.loss import classification_loss
from llmctl.tasks.finetuning import (
    METHOD_FACTOR,
    FinetuneConfig,
    FinetuningTask,
    Method,
    scale_lr_by_width,
)
from llmctl.training.batches import LossParts, TensorBatch
from llmctl.training.config import TrainingConfig

SHORTEST = 8
"""Tokens of an example, special ones included: with fewer next to nothing of a text is left."""
EVAL_BATCH_SIZE = 64
"""Held-out examples in a batch."""


class ClassifyData(LabelledColumns):
    """Which columns hold what, and what is held out."""

    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the examples, chosen by their text's hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of an example, special ones included; longer ones are cut. 0: as pretrained."""

    @field_validator("max_length")
    @classmethod
    def _not_too_short(cls, value: int) -> int:
        if 0 < value < SHORTEST:
            raise ValueError(f"use {SHORTEST} or more, or 0 for as many as in pretraining")
        return value


class ClassifyConfig(FinetuneConfig):
    """Everything that decides the finetuning of a classifier."""

    task: Literal["classify"] = "classify"
    """What is learned."""
    data: ClassifyData = ClassifyData()
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the body, where the architecture has any, and before the output layer."""
    class_weights: Literal["none", "balanced"] = "none"
    """How classes weigh in the loss. balanced: rare ones more, in inverse proportion to their
    frequency."""
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, warmup=0.1, schedule="linear"
    )


class ClassifyTask(FinetuningTask):
    """Labelled examples as batches, and a classifier to train on them."""

    config: ClassifyConfig
    config_type = ClassifyConfig
    peft_task: ClassVar[str] = "SEQ_CLS"

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: ClassifyConfig,
        *,
        start: str,
        reporter: Reporter,
    ) -> None:
        super().__init__(data, base, config, start=start)
        self._causal = base.spec.kind == "decoder"
        reading = config.data.read_options(reporter.note)
        self._columns = resolve_labelled(data, config.data, reading)
        reporter.note(f"{data.name}: {self._columns.describe()}")
        examples = read_labelled(data, self._columns, reporter, reading)
        self._counts = Counter(example.label or "" for example in examples)
        self.labels = _in_order(self._counts)
        self._class_weights: Tensor | None = None
        if config.class_weights == "balanced":
            counts = [self._counts[label] for label in self.labels]
            weights = [sum(counts) / (len(counts) * count) for count in counts]
            self._class_weights = torch.tensor(weights)
        if len(self.labels) < 2:
            raise InputError(
                f"the label column has one class only ({self.labels[0]!r}); a classifier needs "
                "two or more: check --label-column"
            )
        self._max_length = min(config.data.max_length or base.max_length, base.config.max_positions)
        self._pad = pad_token(base.tokenizer)
        tokenizer = base.tokenizer
        if not self._causal and not {"cls", "sep"} <= tokenizer.special.keys():
            raise InputError(
                "the tokenizer has no tokens for cls and sep, which stand around a text to be "
                "classified; use a model that has them"
            )
        # What the folder says to transformers, texts are given here.
        self._tokenizer = (
            tokenizer.for_decoder(pairs=True) if self._causal else tokenizer.for_encoder()
        )
        self._train, self._held_out = self._encoded(examples)
        self._tell_cut(reporter)
        if not self._train:
            raise InputError("every example fell to validation; give more examples")
        self.train_examples, self.held_out_examples = len(self._train), len(self._held_out)
        lengths = np.asarray([len(example.ids) for example in self._train])
        size, seed = config.training.batch_size, config.seed
        self._epoch = lru_cache(maxsize=2)(partial(bucketed, lengths, size, seed))

    def _encoded(
        self, examples: Sequence[Example]
    ) -> tuple[list[EncodedExample], list[EncodedExample]]:
        """The examples to train on, and those held out."""
        encoded = encode_examples(
            self._tokenizer,
            examples,
            self._max_length,
            {label: number for number, label in enumerate(self.labels)},
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
        limit, most = self._max_length, self.base.config.max_positions
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
        """The learning rate where none is given: for a BERT 3e-4 up to 128 wide, falling with the
        width to the 5e-5 that Devlin et al. 2018 (§A.3) give for BERT-base, 768 wide. Decoders
        measured best at 1e-3 of 3e-4, 1e-3 and 3e-3 (see ``METHOD_FACTOR``). Random weights have
        nothing to lose and further to go: 1e-3, so that the comparison is with their best."""
        low = base.spec.kind == "encoder" and not scratch
        return scale_lr_by_width(
            (3e-4 if low else 1e-3) * METHOD_FACTOR[method], base.config.hidden_size
        )

    @property
    def introduction(self) -> str:
        shown = ", ".join(f"{label} {self._counts[label]}" for label in self.labels[:8])
        more = f", … ({len(self.labels)} classes)" if len(self.labels) > 8 else ""
        return (
            f"{self.train_examples} examples to train on, {self.held_out_examples} held out; "
            f"labels: {shown}{more}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {"classes": len(self.labels), COLUMNS: labelled_record(self._columns)}

    @property
    def new_parts(self) -> tuple[str, ...]:
        return parts_on(self.base.spec.build, self.base.config)

    def network(self) -> Classifier:
        return self.base.new_classifier(
            len(self.labels), dropout=self.config.dropout, scratch=self.scratch
        )

    def loss(self, model: Classifier, batch: ExampleBatch) -> LossParts:
        return classification_loss(model, batch, self._class_weights)

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: random examples of like length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return collate([self._train[i] for i in self._epoch(epoch)[place]], self._pad)

    def validation_batches(self) -> list[TensorBatch]:
        ordered = sorted(self._held_out, key=lambda example: len(example.ids))
        return [
            collate(ordered[i : i + EVAL_BATCH_SIZE], self._pad)
            for i in range(0, len(ordered), EVAL_BATCH_SIZE)
        ]

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        # On few examples accuracy has ties, which the loss breaks.
        return {**values, "criterion": 1.0 - values["accuracy"] + 1e-3 * values["loss"]}

    def write(self, folder: Path, model: nn.Module) -> None:
        extra = {
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
            "classifier_dropout": self.config.dropout,
            # By which transformers finds the last token of a text.
            "pad_token_id": self._pad,
            MAX_LENGTH: self._max_length,
            COLUMNS: labelled_record(self._columns),
        }
        write_model_folder(folder, model, self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        assert isinstance(model, Classifier)
        return self.base.spec.export_head("classify", model)


def _in_order(counts: Counter[str]) -> list[str]:
    """Label names in order: by number if all are numbers, else by the alphabet."""
    try:
        numbers = {label: float(label) for label in counts}
    except ValueError:
        return sorted(counts)
    if any(map(math.isnan, numbers.values())):  # nan has no place among numbers
        return sorted(counts)
    return sorted(counts, key=lambda label: (numbers[label], label))
