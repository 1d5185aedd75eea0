"""What the tasks of finetuning share: their configuration, and what the stage asks of one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.config import Config
from llmctl.data.random import key_of
from llmctl.errors import ConfigError
from llmctl.formats.base import Pretrained
from llmctl.training.adapters.freezing import freeze_layers
from llmctl.training.adapters.lora import LoraConfig, add_lora
from llmctl.training.batches import LossParts, TensorBatch
from llmctl.training.config import TrainingConfig

LAST_LAYERS = 2

Method = Literal["full", "lora", "last-layers"]

METHOD_FACTOR: dict[Method, float] = {"full": 1.0, "lora": 3.0, "last-layers": 3.0}
"""How much higher the learning rate is than for all weights. Measured by the validation loss on 500
labelled texts and 850 instructions, from a GPT-2 and a Llama of 4 layers × 128 that had read two
million tokens: of 1, 3 and 10 for LoRA (10 was 0.04 nats better on instructions, and ruined
classifiers), of 1 and 3 for the last layers."""


def scale_lr_by_width(rate: float, width: int) -> float:
    """A rate that was found for a body 128 wide, for another: a step then changes each layer's
    output as much (Yang et al. 2022, μP). Narrower ones have the same."""
    return rate * 128 / max(width, 128)


class FinetuneConfig(Config):
    """What decides a finetuning, whatever its task."""

    task: str
    """What is learned."""
    method: Method = "full"
    """What trains: full, everything; lora, a small addition to the blocks' matrices; last-layers,
    the last blocks and what follows them. What a task begins anew trains always."""
    freeze_layers: int = Field(0, ge=0)
    """With the method full: the embeddings and this many of the lowest blocks stay as they are."""
    last_layers: int = Field(LAST_LAYERS, ge=1)
    """With the method last-layers: how many blocks train."""
    lora: LoraConfig = LoraConfig()
    patience: int = Field(6, ge=0)
    """Validations without a better one before training stops; 0: never early."""
    training: TrainingConfig
    seed: int = 0
    """Seed of fresh weights, the order and dropout."""

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.freeze_layers and self.method != "full":
            raise ValueError(
                f"--freeze-layers {self.freeze_layers} goes with --method full, and --method "
                f"{self.method} chooses what trains; leave one of them out"
            )
        if self.method != "lora" and self.lora != LoraConfig():
            raise ValueError(f"lora.* goes with --method lora, and --method is {self.method}")
        if self.method != "last-layers" and self.last_layers != LAST_LAYERS:
            raise ValueError(
                f"last_layers goes with --method last-layers, and --method is {self.method}"
            )
        return self


class Task(ABC):
    """Data and a network to train on them."""

    config: FinetuneConfig
    base: Pretrained
    train_examples: int
    held_out_examples: int
    peft_task: ClassVar[str]
    """The task's name in PEFT."""

    def __init__(self, base: Pretrained, config: FinetuneConfig, *, scratch: bool) -> None:
        """Raises ConfigError where more blocks are named than the model has."""
        check_layers(config, base)
        self.base, self.config, self._scratch = base, config, scratch

    @abstractmethod
    def describe(self) -> str:
        """The data in a line."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The network as it starts, all of it trainable; fresh weights are drawn."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> LossParts:
        """The loss of a batch, as sums and counts."""

    @abstractmethod
    def batch(self, number: int) -> TensorBatch:
        """Batch ``number`` of endless ones."""

    @abstractmethod
    def validation_batches(self) -> list[TensorBatch]:
        """What is looked at to tell how good the network is."""

    @abstractmethod
    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        """Figures of the held-out batches, with what follows from them; the ``criterion``, or the
        loss, says which weights are best."""

    @abstractmethod
    def write(self, folder: Path, model: nn.Module) -> None:
        """Write the trained network as a model folder."""

    @abstractmethod
    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        """The new parts in Hugging Face's names."""

    @property
    @abstractmethod
    def fresh_modules(self) -> tuple[str, ...]:
        """Names of the network's parts that start anew; they train with every method."""

    @property
    @abstractmethod
    def plan_facts(self) -> dict[str, Any]:
        """What a plan says of the data beyond the number of examples."""

    @property
    def rate_scale(self) -> dict[str, float]:
        """Factors of the learning rate by a part's name; 1 where it isn't named."""
        return {}

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.train_examples // self.config.training.batch_size)

    @property
    def total_steps(self) -> int | None:
        """Steps in all; None if only the time limits them."""
        training = self.config.training
        if training.max_steps is not None:
            return training.max_steps
        if training.time_limit is not None:
            return None
        return max(1, math.ceil(training.epochs * self.batches_per_epoch))

    def build_model(self) -> nn.Module:
        """The network, with what the method leaves alone frozen."""
        config = self.config
        torch.manual_seed(key_of(config.seed, "weights"))
        model = self.network()
        if config.method == "lora":
            add_lora(model, config.lora, new=self.fresh_modules)
        elif config.method == "last-layers":
            freeze_layers(model, self.base.config.num_layers - config.last_layers)
        elif config.freeze_layers:
            freeze_layers(model, config.freeze_layers)
        return model


def check_layers(config: FinetuneConfig, base: Pretrained) -> None:
    """Raises ConfigError where more blocks are named than the model has."""
    layers = base.config.num_layers
    named = {"--freeze-layers": config.freeze_layers}
    if config.method == "last-layers":
        named["last_layers"] = config.last_layers
    for name, count in named.items():
        if count > layers:
            raise ConfigError(
                f"{name} {count}: the model has {layers} blocks; use at most {layers}"
            )
