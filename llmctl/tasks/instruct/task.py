"""Finetune on instructions: conversations to a model that answers."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from llmctl.data.packing import PACKING_WINDOW_BATCHES, deal
from llmctl.data.random import key_of, permute
from llmctl.data.tables.conversations import Conversation, read_conversations
from llmctl.data.text.decoding import ReadConfig
from llmctl.data.text.hashing import is_held_out
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.causal_lm.batches import CausalBatch
from llmctl.tasks.causal_lm.loss import causal_lm_loss
from llmctl.tasks.chatting import ChatTask
from llmctl.tasks.finetuning import (
    METHOD_FACTOR,
    FinetuneConfig,
    Method,
    scale_lr_by_width,
)
from llmctl.tasks.instruct.batches import InstructExample, collate, fit
from llmctl.tokenizers.chat_template import EncodedChat
from llmctl.training.batches import LossParts, TensorBatch
from llmctl.training.config import TrainingConfig

Rows = list[list[InstructExample]]


class InstructData(ReadConfig):
    """How conversations become rows, and what is held out."""

    validation: float = Field(0.05, ge=0, lt=1)
    """Share of the conversations, chosen by their text's hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of a conversation; longer ones are cut, behind an answer where one fits. 0: as
    pretrained."""


class InstructConfig(FinetuneConfig):
    """Everything that decides a finetuning on instructions."""

    task: Literal["instruct"] = "instruct"
    """What is learned."""
    data: InstructData = InstructData()
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the body, where the architecture has any."""
    patience: int = Field(2, ge=0)
    """Validations without a better one before training stops; 0: never early."""
    training: TrainingConfig = TrainingConfig(
        epochs=3, batch_size=16, warmup=0.1, schedule="linear"
    )


class InstructTask(ChatTask):
    """Conversations as packed batches, and a language model to train on them."""

    config: InstructConfig
    config_type = InstructConfig

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: InstructConfig,
        *,
        start: str,
        reporter: Reporter,
    ) -> None:
        super().__init__(data, base, config, start=start, reporter=reporter)
        self._read(data, reporter)
        self.train_examples, self.held_out_examples = len(self._train), len(self._held_out)
        self._lengths = np.asarray([example.num_positions for example in self._train])
        self._window = lru_cache(maxsize=2)(self._make_window)

    def _read(self, data: Path, reporter: Reporter) -> None:
        """Fill ``_train`` and ``_held_out`` from a file. Raises InputError if nothing is left."""
        self._train: list[InstructExample] = []
        self._held_out: list[InstructExample] = []
        what = Counter[str]()
        conversations = read_conversations(
            data, reading=self.config.data.read_options(reporter.note)
        )
        for conversation in conversations:
            example = self._encoded(conversation, what)
            if example is not None:
                held_out = is_held_out(conversation.text, self.config.data.validation)
                (self._held_out if held_out else self._train).append(example)
        if not what["read"]:
            raise InputError(f"{data} has no conversations")
        if what["left out"] == what["read"]:
            raise InputError(
                f"{data}: no answer begins within {self._max_length} tokens; raise "
                "data.max_length, or finetune a model with a longer context"
            )
        if not self._train:
            raise InputError("every conversation fell to validation; give more conversations")
        if what["cut"]:
            within = f" ({what['within']} within the first answer)" if what["within"] else ""
            reporter.note(
                f"{what['cut']} of {what['read']} conversations are longer than "
                f"{self._max_length} tokens and were cut{within}"
            )
        if what["left out"]:
            reporter.note(
                f"left out {what['left out']} of {what['read']} conversations, whose first answer "
                f"would begin beyond {self._max_length} tokens"
            )

    def _encoded(self, conversation: Conversation, what: Counter[str]) -> InstructExample | None:
        """A conversation as ids; what had to be done with it is counted."""
        try:
            chat = self._template.encode(conversation.messages)
        except InputError as error:
            raise InputError(f"{conversation.source}: {error}") from None
        chat = without_context(chat, conversation)
        example = fit(chat, self._max_length)
        what["read"] += 1
        what["left out"] += example is None
        what["cut"] += example is not None and len(example.ids) < len(chat.ids)
        what["within"] += example is not None and len(example.ids) < chat.answer_stops[0]
        return example

    @staticmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given: 1e-3 for a body up to 128 wide. 3e-4 was worse by
        0.2 nats a token and 2e-3 better by 0.05 (see ``METHOD_FACTOR``), on models with much left
        to learn of the language; one that has learned it has more to lose."""
        return scale_lr_by_width(1e-3 * METHOD_FACTOR[method], base.config.hidden_size)

    @property
    def introduction(self) -> str:
        examples = [*self._train, *self._held_out]
        tokens = sum(len(example.ids) for example in examples)
        answers = sum(int(example.scored.sum()) for example in examples)
        return (
            f"{self.train_examples} conversations to train on, {self.held_out_examples} held out; "
            f"{tokens:,} tokens, {answers / tokens:.0%} of them in answers"
        )

    def loss(self, model: CausalLM, batch: CausalBatch) -> LossParts:
        return causal_lm_loss(model, batch)

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: about ``batch_size`` random conversations, packed."""
        epoch, place = divmod(number, self.batches_per_epoch)
        window, place = divmod(place, PACKING_WINDOW_BATCHES)
        return self._collated(self._window(epoch, window)[place])

    def _make_window(self, epoch: int, window: int) -> list[Rows]:
        """The rows of some consecutive batches of an epoch, packed together."""
        seed, size = self.config.seed, self.config.training.batch_size
        first = window * PACKING_WINDOW_BATCHES * size
        places = np.arange(first, min(first + PACKING_WINDOW_BATCHES * size, len(self._train)))
        members = permute(key_of(seed, "order", epoch), len(self._train), places)
        batches = -(-len(members) // size)
        dealt = deal(
            self._lengths[members],
            int(self._lengths.max()),
            batches,
            key_of(seed, "deal", epoch, window),
        )
        return [[[self._train[members[i]] for i in row] for row in batch] for batch in dealt]

    def validation_batches(self) -> list[TensorBatch]:
        if not self._held_out:
            return []
        lengths = np.asarray([example.num_positions for example in self._held_out])
        batches = -(-len(lengths) // self.config.training.batch_size)
        dealt = deal(lengths, int(lengths.max()), batches, key_of("held out"))
        return [
            self._collated([[self._held_out[i] for i in row] for row in batch]) for batch in dealt
        ]

    def _collated(self, rows: Rows) -> TensorBatch:
        return collate(rows, token_bytes=self._tokenizer.token_bytes)

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        return {**values, "perplexity": math.exp(values["lm_loss"])}


def without_context(chat: EncodedChat, conversation: Conversation) -> EncodedChat:
    """A conversation's ids, of which the answers that are context only are not scored."""
    scored, begin = chat.scored.copy(), 0
    answers = [turn for turn in conversation.turns if turn.role == "assistant"]
    for answer, stop in zip(answers, chat.answer_stops, strict=True):
        if not answer.learned:
            scored[begin:stop] = False
        begin = stop
    return EncodedChat(chat.ids, scored, chat.answer_stops)
