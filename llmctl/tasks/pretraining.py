"""Pretraining: its whole configuration, and shards opened to be trained on."""

from __future__ import annotations

import math
from typing import Any, Generic, TypeVar

from pydantic import Field

from llmctl import tokenizers
from llmctl.config import Config, Seconds
from llmctl.errors import UsageError, did_you_mean
from llmctl.models import ARCHITECTURES
from llmctl.objectives import PRETRAINING
from llmctl.objectives.pretraining import Batches, DataConfig, Pretraining
from llmctl.training.config import TrainingConfig
from llmctl.workspace.artefacts import Artefact

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
    kind = PRETRAINING[architecture.task]
    return PretrainConfig[architecture.config, kind.config, kind.data_config]  # type: ignore[name-defined]


def open_pretraining(
    shards: Artefact, config: PretrainConfig[Any, Any, Any]
) -> tuple[Pretraining[Any, Any], PretrainConfig[Any, Any, Any]]:
    """A pretraining with its data, and the configuration with what follows from the data."""
    tokenizer = tokenizers.load(shards.folder / "tokenizer")
    architecture = ARCHITECTURES[config.arch]
    kind = PRETRAINING[architecture.task]
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
