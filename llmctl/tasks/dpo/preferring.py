"""Finetuning by how good answers are, beside a reference: what pairs, ratings and rewards share.

The reference is the model that training starts from; with LoRA that is the model without the
additions.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.data.text.decoding import ReadConfig
from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import CHAT, MAX_LENGTH, NEXT_TOKEN_KINDS
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.buckets import bucketed
from llmctl.tasks.dpo.answers import EncodedAnswer
from llmctl.tasks.dpo.reference import reference_log_probs
from llmctl.tasks.finetuning import (
    METHOD_FACTOR,
    FinetuneConfig,
    FinetuningTask,
    Method,
    scale_lr_by_width,
)
from llmctl.tokenizers.chat_template import ChatTemplate, default_template
from llmctl.training.batches import TensorBatch
from llmctl.training.config import TrainingConfig
from llmctl.training.device import Machine


class PreferringData(ReadConfig):
    """How answers become rows, and what is held out."""

    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts, chosen by their text's hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of a prompt with its answer; longer answers are cut. 0: as pretrained."""


class PreferringConfig(FinetuneConfig):
    """What decides a finetuning by how good answers are."""

    data: PreferringData = PreferringData()
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the body, where the architecture has any."""
    patience: int = Field(2, ge=0)
    """Validations without a better one before training stops; 0: never early."""
    training: TrainingConfig = TrainingConfig(
        epochs=3, batch_size=16, warmup=0.1, schedule="linear"
    )


class AnsweringTask(FinetuningTask):
    """A model that answers, to be made better at it."""

    peft_task: ClassVar[str] = "CAUSAL_LM"
    config: Any

    def __init__(
        self, data: Path, base: Pretrained, config: Any, *, start: str, reporter: Reporter
    ) -> None:
        """Raises UsageError for random weights, ConfigError for a length beyond the model's."""
        super().__init__(data, base, config, start=start)
        if self.scratch:
            raise UsageError(
                f"--task {config.task} makes a model better that answers already, and --from "
                "scratch answers nothing; give a run of --task instruct"
            )
        self._max_length = config.data.max_length or base.max_length
        if self._max_length > base.longest_text:
            raise ConfigError(
                f"data.max_length {self._max_length} is longer than the model's context; use at "
                f"most {base.longest_text}"
            )
        source, note = default_template(base.tokenizer)
        if note is not None:
            reporter.note(note)
        if not base.fields.get(CHAT) and base.tokenizer.chat_template is None:
            reporter.note(
                f"{start} has not learned to answer; finetune it with --task instruct first"
            )
        self._tokenizer = copy.copy(base.tokenizer)
        self._tokenizer.chat_template = source
        self._template = ChatTemplate(source, self._tokenizer)

    @classmethod
    def kinds(cls, config: Any) -> tuple[str, ...]:
        return NEXT_TOKEN_KINDS

    @staticmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given: a tenth of what answers are learned at, as the
        model is to stay near where it starts."""
        return scale_lr_by_width(1e-4 * METHOD_FACTOR[method], base.config.hidden_size)

    @property
    def facts(self) -> dict[str, Any]:
        return {"max_length": self._max_length}

    @property
    def new_parts(self) -> tuple[str, ...]:
        return ()

    def network(self) -> CausalLM:
        return self.base.causal_lm(dropout=self.config.dropout)

    def write(self, folder: Path, model: nn.Module) -> None:
        extra = {MAX_LENGTH: max(self._max_length, self.base.max_length), CHAT: True}
        write_model_folder(folder, model, self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return {}


class PreferringTask(AnsweringTask):
    """Answers that are known to be good or bad, as padded batches."""

    what: ClassVar[str]
    """What an example is, in the plural."""
    _split: tuple[list[int], list[int]]
    """Numbers of the examples to train on, and of those held out."""

    def __init__(
        self, data: Path, base: Pretrained, config: Any, *, start: str, reporter: Reporter
    ) -> None:
        super().__init__(data, base, config, start=start, reporter=reporter)
        self._read(reporter)
        trained, held_out = self._split
        if not trained:
            raise InputError(f"all {self.what} fell to validation; give more of them")
        self.train_examples, self.held_out_examples = len(trained), len(held_out)
        every = self._lengths
        lengths = [every[number] for number in trained]
        size, seed = config.training.batch_size, config.seed
        self._epoch = lru_cache(maxsize=2)(partial(bucketed, lengths, size, seed))
        self._reference: Tensor | None = None

    @abstractmethod
    def _read(self, reporter: Reporter) -> None:
        """Fill ``_split`` from the file, and what it numbers. Raises InputError if nothing is
        left."""

    @property
    @abstractmethod
    def answers(self) -> Sequence[EncodedAnswer]:
        """All whose log-probability under the reference is wanted."""

    @property
    @abstractmethod
    def _lengths(self) -> Sequence[int]:
        """Tokens of each example."""

    @abstractmethod
    def _collated(self, numbers: Sequence[int]) -> TensorBatch:
        """Some examples as a batch."""

    def _tell_lengths(self, counts: Counter[str], reporter: Reporter) -> None:
        """Say what was too long. Raises InputError where that is all."""
        read, limit = counts["read"], self._max_length
        if counts["too long"] == read:
            raise InputError(
                f"{self.data}: no answer begins within {limit} tokens; raise data.max_length, or "
                "finetune a model with a longer context"
            )
        if left_out := counts["too long"]:
            reporter.note(
                f"left out {left_out:,} of {read:,} {self.what}, whose answers would begin beyond "
                f"{limit} tokens"
            )
        if cut := counts["cut"]:
            reporter.note(
                f"answers of {cut:,} of {read:,} {self.what} are longer than {limit} tokens with "
                "their prompt and were cut"
            )

    @property
    def introduction(self) -> str:
        return (
            f"{self.train_examples:,} {self.what} to train on, {self.held_out_examples:,} held out"
        )

    def before_training(self, folder: Path, machine: Machine, reporter: Reporter) -> None:
        self._reference = reference_log_probs(folder, self.base, self.answers, machine, reporter)

    @property
    def reference(self) -> Tensor:
        """Log-probability of the answers under the reference, in nats."""
        assert self._reference is not None, "before_training computes it"
        return self._reference

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: random examples of like length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        trained = self._split[0]
        return self._collated([trained[i] for i in self._epoch(epoch)[place]])

    def validation_batches(self) -> list[TensorBatch]:
        ordered = sorted(self._split[1], key=self._lengths.__getitem__)
        size = self.config.training.batch_size
        return [self._collated(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def looked_up(reference: Tensor, numbers: Tensor) -> Tensor:
    """The entries of some numbers, on the device of the numbers."""
    return reference[numbers.cpu()].to(numbers.device, dtype=torch.float32)
