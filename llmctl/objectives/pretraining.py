"""What the pretrain stage asks of an objective: its configuration, its batches and its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from pydantic import Field
from torch import nn

from llmctl.config import Config
from llmctl.data.keyed import key_of
from llmctl.data.shards.files import ShardReader
from llmctl.errors import InputError
from llmctl.models.flops import flops_per_token
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.objectives.base import TensorBatch
from llmctl.tokenizers import Tokenizer

VALIDATION_SEED = 0
"""Validation draws from this, whatever the run's seed: losses stay comparable."""


class DataConfig(Config):
    """How documents become rows."""

    sequence_length: int = Field(128, ge=8)
    """Tokens in a row, special ones included."""
    eval_batches: int = Field(16, ge=1)
    """Batches of validation text looked at each time."""


class Batches(Protocol):
    """The batches of a split, by number."""

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the split; 0 if it has no documents."""
        ...

    def __call__(self, number: int) -> TensorBatch: ...


C = TypeVar("C", bound=Config)
D = TypeVar("D", bound=DataConfig)


class Pretraining(ABC, Generic[C, D]):
    """Shards and an objective: what to train on, and what to train."""

    config: type[C]
    """The objective's configuration."""
    data_config: type[D]
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What differs from the general defaults of a pretraining, as a recipe would say it."""
    roles: ClassVar[tuple[str, ...]]
    """Special tokens that the objective needs."""
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
        objective: C,
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
        """A body with the objective's heads."""

    @abstractmethod
    def head_weights(self) -> float:
        """Weights of the heads that a token is multiplied with, on average."""

    def flops_per_token(self) -> float:
        """Of a forward and a backward pass, for each token of a row; a multiplication and an
        addition are two."""
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
