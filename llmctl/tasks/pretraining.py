"""Pretraining: its whole configuration, and shards opened to be trained on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import Field
from torch import nn

from llmctl import tokenizers
from llmctl.config import Config, Seconds
from llmctl.data.random import key_of
from llmctl.data.shards.files import ShardReader
from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.models import ARCHITECTURES
from llmctl.models.flops import flops_per_token
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.tasks import PRETRAINING
from llmctl.tokenizers import Tokenizer
from llmctl.training.batches import Batches, LossParts
from llmctl.training.config import TrainingConfig
from llmctl.workspace.artefacts import Artefact

VALIDATION_SEED = 0
"""Validation draws from this, whatever the run's seed: losses stay comparable."""


class DataConfig(Config):
    """How documents become rows."""

    sequence_length: int = Field(128, ge=8)
    """Tokens in a row, special ones included."""
    eval_batches: int = Field(16, ge=1)
    """Batches of validation text looked at each time."""


M = TypeVar("M", bound=Config)
L = TypeVar("L", bound=Config)
D = TypeVar("D", bound=DataConfig)


class PretrainConfig(Config, Generic[M, L, D]):
    """Everything that decides a pretraining; ``config_for`` knows an architecture's."""

    arch: str
    """The architecture."""
    model: M
    objective: L
    data: D
    training: TrainingConfig = TrainingConfig()
    seed: int = 0
    """Seed of weights, order, dropout and, for BERT, pairs and masks."""
    budget: Seconds | None = Field(None, gt=0)
    """Wall clock from the command's start to the finished model, for which what is not given of
    shape, batch and schedule is chosen."""
    chosen: tuple[str, ...] = ()
    """Keys that the budget chooses; filled in by the command."""


class Pretraining(ABC, Generic[L, D]):
    """Shards and what is learned from them: what to train on, and what to train."""

    config: type[L]
    """The objective's configuration."""
    data_config: type[D]
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What differs from the general defaults of a pretraining, as a recipe would say it."""
    roles: ClassVar[tuple[str, ...]]
    """Special tokens that the task needs."""
    compile_on_cpu: ClassVar[bool] = True
    """Whether kernels of its own make a model faster on a processor too."""
    described: ClassVar[str]
    """What needs them, and how to learn a tokenizer that has them; for messages."""

    def __init__(
        self,
        shards: Path,
        tokenizer: Tokenizer,
        architecture: ModelSpec,
        model: Any,
        objective: L,
        data: D,
        batch_size: int,
    ) -> None:
        """Raises InputError if the tokenizer lacks a special token."""
        if missing := self.missing_roles(tokenizer):
            raise InputError(
                f"the tokenizer has no token for {', '.join(missing)}, {self.described}"
            )
        self.shards, self.tokenizer, self.architecture = shards, tokenizer, architecture
        self.model_config, self.objective, self.data = model, objective, data
        self.batch_size = batch_size

    @classmethod
    def missing_roles(cls, tokenizer: Tokenizer) -> list[str]:
        """The special tokens that a tokenizer lacks."""
        return [role for role in cls.roles if role not in tokenizer.special]

    @staticmethod
    @abstractmethod
    def peak_rate(width: int) -> float:
        """The learning rate where none is given, by the width of the hidden states."""

    @abstractmethod
    def batches(self, split: str, *, seed: int) -> Batches:
        """The batches of a split: endless and shuffled for training, one pass for validation."""

    @abstractmethod
    def model(self, body: Backbone) -> nn.Module:
        """A body with the task's heads."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> LossParts:
        """The loss of a batch, as sums and counts."""

    @abstractmethod
    def head_weights(self) -> float:
        """Weights of the heads that a token is multiplied with, on average."""

    def flops_per_token(self) -> float:
        """Operations of a forward and a backward pass for each token of a row; a multiplication and
        an addition are two."""
        with torch.device("meta"):
            body = self.architecture.build(self.model_config)
        return flops_per_token(body, self.data.sequence_length, self.head_weights())

    def build_model(self, seed: int) -> nn.Module:
        """The model with fresh weights, drawn from the run's seed."""
        torch.manual_seed(key_of(seed, "weights"))
        return self.model(self.architecture.build(self.model_config))

    def reader(self, split: str) -> ShardReader:
        """The documents of a split. Raises InputError if there are none to train on."""
        reader = ShardReader(self.shards, split, self.tokenizer.vocab_size)
        if split == "train" and not len(reader):
            raise InputError(
                f"shards {self.shards.name} have no training documents; tokenize more text, or "
                "with a smaller --validation"
            )
        return reader


def config_for(arch: str) -> type[PretrainConfig[Any, Any, Any]]:
    """The configuration of an architecture's pretraining.

    Raises UsageError for an unknown architecture.
    """
    # A recipe may give any value: lists compare where a dictionary would want a hash.
    if arch not in list(ARCHITECTURES):
        raise UsageError(
            f"--arch {arch!r} is not known{did_you_mean(str(arch), [*ARCHITECTURES, 'ngram'])}; "
            f"choose one of {', '.join(ARCHITECTURES)}, or ngram, which counts"
        )
    architecture = ARCHITECTURES[arch]
    kind = PRETRAINING[architecture.task]()
    return PretrainConfig[architecture.config, kind.config, kind.data_config]  # type: ignore[name-defined]


def open_pretraining(
    shards: Artefact, config: PretrainConfig[Any, Any, Any]
) -> tuple[Pretraining[Any, Any], PretrainConfig[Any, Any, Any]]:
    """A pretraining with its data, and the configuration with what follows from the data."""
    tokenizer = tokenizers.load(shards.folder / "tokenizer")
    architecture = ARCHITECTURES[config.arch]
    kind = PRETRAINING[architecture.task]()
    rate = config.training.learning_rate or kind.peak_rate(config.model.hidden_size)
    config = config.replace(
        model=config.model.replace(vocab_size=tokenizer.vocab_size).model_dump(),
        training=config.training.replace(learning_rate=rate).model_dump(),
    )
    pretraining = kind(
        shards.folder,
        tokenizer,
        architecture,
        config.model,
        config.objective,
        config.data,
        config.training.batch_size,
    )
    return pretraining, config


def total_steps(training: TrainingConfig, batches: Batches) -> int | None:
    """Steps in all; None if only the time limits them."""
    if training.max_steps is not None:
        return training.max_steps
    if training.time_limit is not None:
        return None
    return max(1, math.ceil(training.epochs * batches.per_epoch))
