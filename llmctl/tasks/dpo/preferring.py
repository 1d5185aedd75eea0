"""Finetuning by how good answers are, beside a reference: what pairs, ratings and rewards share.

The reference is the model that training starts from; with LoRA that is the model without the
additions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmctl.data.tables.conversations import Conversation
from llmctl.data.text.decoding import ReadConfig, ReadOptions
from llmctl.data.text.hashing import is_held_out
from llmctl.errors import InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import CHAT
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.buckets import bucketed
from llmctl.tasks.chatting import ChatTask
from llmctl.tasks.dpo.answers import EncodedAnswer, encode_answer
from llmctl.tasks.dpo.reference import reference_log_probs
from llmctl.tasks.finetuning import (
    METHOD_FACTOR,
    SCRATCH,
    FinetuneConfig,
    Method,
    scale_lr_by_width,
)
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


class AnsweringTask(ChatTask):
    """A model that answers, to be made better at it."""

    def __init__(
        self, data: Path, base: Pretrained, config: Any, *, start: str, reporter: Reporter
    ) -> None:
        """Raises UsageError for random weights, ConfigError for a length beyond the model's."""
        if start == SCRATCH:
            raise UsageError(
                f"--task {config.task} makes a model better that answers already, and --from "
                "scratch answers nothing; give a run of --task instruct"
            )
        super().__init__(data, base, config, start=start, reporter=reporter)
        if not base.fields.get(CHAT) and base.tokenizer.chat_template is None:
            reporter.note(
                f"{start} has not learned to answer; finetune it with --task instruct first"
            )

    @staticmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given: a tenth of what answers are learned at, as the
        model is to stay near where it starts."""
        return scale_lr_by_width(1e-4 * METHOD_FACTOR[method], base.config.hidden_size)


class PreferringTask(AnsweringTask):
    """Answers that are known to be good or bad, as padded batches."""

    what: ClassVar[str]
    """What an example is, in the plural."""

    def __init__(
        self, data: Path, base: Pretrained, config: Any, *, start: str, reporter: Reporter
    ) -> None:
        super().__init__(data, base, config, start=start, reporter=reporter)
        self._split: tuple[list[int], list[int]] = ([], [])
        """Numbers of the examples to train on, and of those held out."""
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

    def _read(self, reporter: Reporter) -> None:
        """Take the file's examples, and fill ``_split`` with their numbers. Raises InputError if
        nothing is left."""
        counts: Counter[str] = Counter()
        for example in self._entries(self.config.data.read_options(reporter.note)):
            counts["read"] += 1
            conversations = self._conversations(example)
            encoded = [encode_answer(c, self._template, self._max_length) for c in conversations]
            answers = [answer for answer in encoded if answer is not None]
            if len(answers) < len(encoded):
                counts["too long"] += 1
            elif not self._take(example, answers):
                counts["the same"] += 1
            else:
                counts["cut"] += any(answer.cut for answer in answers)
                held_out = is_held_out(example.asked, self.config.data.validation)
                self._split[held_out].append(sum(map(len, self._split)))
        self._tell(counts, reporter)

    @abstractmethod
    def _entries(self, reading: ReadOptions) -> Iterator[Any]:
        """The examples of the file. Raises InputError if there are none."""

    @abstractmethod
    def _conversations(self, example: Any) -> Sequence[Conversation]:
        """An example's answers, each behind what is asked."""

    @abstractmethod
    def _take(self, example: Any, answers: Sequence[EncodedAnswer]) -> bool:
        """Keep an example as the next; False, and it isn't kept, where its answers are the same."""

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

    def _tell(self, counts: Counter[str], reporter: Reporter) -> None:
        """Say what could not be taken as it is. Raises InputError where that is all."""
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
