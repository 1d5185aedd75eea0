"""What a task is to the stage that trains, whichever of the two commands it comes through.

A **request** is what a command was asked for: a configuration, and the names of what is trained on
and from. Its **sources** are those things, opened and checked, with the identity by which the run
is found again. Only then is a **task** made of it, which reads the data. Pretraining and finetuning
are two kinds of request and of task; the stage behind them does not ask which.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from llmctl.config import Config, config_of, put, take
from llmctl.data.random import key_of
from llmctl.errors import UsageError
from llmctl.formats.base import Pretrained
from llmctl.models.layers.initialisation import drawn_as_always
from llmctl.reporting.reporter import Reporter
from llmctl.training.batches import LossParts, TensorBatch
from llmctl.training.device import Machine
from llmctl.training.progress import Progress
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity


class Task(ABC):
    """Something to be learned, with its data."""

    size_unit: ClassVar[str] = "parameters"
    """What the size of its models is a number of."""
    config: Any

    @property
    def introduction(self) -> str | None:
        """The data in a line, where there is more to say than their name."""
        return None

    @property
    def manifest_config(self) -> dict[str, Any]:
        """What the manifest of the run keeps as its configuration."""
        config: dict[str, Any] = self.config.model_dump(mode="json")
        return config


class InstantTask(Task):
    """A task of seconds to minutes: the run appears when it is done, and there is nothing to go on
    from."""

    @abstractmethod
    def fit(self, folder: Path, reporter: Reporter) -> dict[str, Any]:
        """Write the model folder and the record of its making into a run's folder; returns the
        summary."""

    @abstractmethod
    def plan(self, price: float | None) -> dict[str, Any]:
        """What it will take on this machine. price: of an hour."""


class NetworkTask(Task):
    """A network that is trained step by step."""

    shards: Artefact | None = None
    """What it reads, where that is shards."""
    base: Pretrained | None = None
    """The model that it starts from, where there is one."""
    keeps_best: ClassVar[bool] = False
    """Whether the weights that were best at a validation are the model, or the last."""
    unvalidated: ClassVar[str | None] = None
    """What to say where nothing is held out."""

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the training data."""

    @abstractmethod
    def batch(self, number: int) -> TensorBatch:
        """Batch ``number`` of endless ones, a pure function of the data, the seed and the
        number."""

    @abstractmethod
    def validation_batches(self) -> Sequence[TensorBatch]:
        """What is evaluated to tell how good the network is; none if nothing is held out."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The network as it starts, all of it trainable; fresh weights are drawn."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> LossParts:
        """The loss of a batch, as sums and counts."""

    @abstractmethod
    def write(self, folder: Path, model: nn.Module) -> None:
        """Write the trained network as a model folder."""

    @property
    @abstractmethod
    def eval_every(self) -> int:
        """Steps between validations."""

    @property
    @abstractmethod
    def plan_facts(self) -> dict[str, Any]:
        """What a plan says of the data."""

    @property
    def patience(self) -> int:
        """Validations without a better one before training stops; 0: never early."""
        return 0

    @property
    def steps_together(self) -> int:
        """Steps that share what no checkpoint keeps: it stops, and is saved, between such groups
        of them only."""
        return 1

    @property
    def rate_scale(self) -> dict[str, float]:
        """Factors of the learning rate by a part's name; 1 where it isn't named."""
        return {}

    @property
    def total_steps(self) -> int | None:
        """Steps in all; None if only the time limits them."""
        training = self.config.training
        if training.max_steps is not None:
            return int(training.max_steps)
        if training.time_limit is not None:
            return None
        return max(1, math.ceil(training.epochs * self.batches_per_epoch))

    def build_model(self) -> nn.Module:
        """The network as it is trained; fresh weights are drawn from the configuration's seed."""
        torch.manual_seed(key_of(self.config.seed, "weights"))
        with drawn_as_always():
            return self.network()

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        """Figures of a validation, with what follows from them; the ``criterion``, or the loss,
        says which weights are best."""
        return values

    def before_training(self, folder: Path, machine: Machine, reporter: Reporter) -> None:
        """Compute what the losses need besides the network, before the first step of each start.
        folder: the run's, to keep it in. All processes call it."""
        return

    def compiles_on(self, device: torch.device) -> bool:
        """Whether kernels of its own may make it faster there: not where shapes keep changing."""
        return False

    def flops_per_token(self) -> float | None:
        """Operations of a forward and a backward pass for each token of a row, a multiplication
        and an addition being two; None where they have to be counted."""
        return None

    def export(self, model: nn.Module, progress: Progress, folder: Path) -> dict[str, Any]:
        """Write the model folder; returns figures for the summary."""
        self.write(folder, model)
        return {"parameters": sum(p.numel() for p in model.parameters())}

    def conclude(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """What the figures of a finished training mean, to be kept with them."""
        return {}


@dataclass(frozen=True)
class Sources:
    """What a training is made from, opened and checked."""

    identity: Identity
    default_name: str
    """The name of the run, where none is given."""
    open: Callable[[Any, Reporter], Task]
    """Makes the task of a configuration, which may have come to more than was asked for, and reads
    the data."""
    parent: Artefact | None = None
    """The run whose weights it starts from."""


class Request(ABC):
    """A training that is asked for; nothing of its data is read yet."""

    stage: ClassVar[str]
    """The command, and the table of a recipe."""
    keys: ClassVar[tuple[str, ...]]
    """What it is given beside the fields of its configuration, as a recipe writes it."""
    config: Any

    @classmethod
    @abstractmethod
    def of(
        cls,
        workspace: Workspace,
        named: Mapping[str, Any],
        options: Mapping[str, Any],
        *layers: Mapping[str, Any],
    ) -> Self:
        """The request of a command. named: values of ``keys`` that options give. options: further
        ones, by the names of fields. layers: a recipe's table, and what lies over the options.

        Raises UsageError for what is missing or does not go together.
        """

    @abstractmethod
    def open(self, workspace: Workspace, reporter: Reporter) -> Sources:
        """What it is made from. Raises InputError where that is not there, or does not suit."""

    @abstractmethod
    def pinned(
        self,
        workspace: Workspace,
        reporter: Reporter,
        known: dict[tuple[str | None, ...], Artefact],
    ) -> Self:
        """The request with what it takes as the newest settled, so that it stays the same. known:
        what others settled on, by what they asked, the name last; added to."""

    @property
    @abstractmethod
    def words(self) -> dict[str, str | None]:
        """The options that name what it is made from."""


def taken(
    keys: Sequence[str], named: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, str], list[Mapping[str, Any]]]:
    """What layers and options name beside a configuration's fields, and the layers without it."""
    chosen: dict[str, str] = {}
    rest: list[Mapping[str, Any]] = []
    for layer in layers:
        found, left = take(layer, *keys)
        chosen |= found
        rest.append(left)
    return {
        **chosen,
        **{key: str(value) for key, value in named.items() if value is not None},
    }, rest


def options_layer(
    kind: type[Config], options: Mapping[str, Any], refusal: Callable[[str], str]
) -> dict[str, Any]:
    """Options as a layer of a configuration: each stands where the field of its name does.

    refusal: what to say of an option that has none, which is a UsageError.
    """
    layer: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        key = key_of_field(kind, name)
        if key is None:
            raise UsageError(refusal(name))
        put(layer, key, value)
    return layer


def key_of_field(kind: type[Config], name: str) -> str | None:
    """The dotted key of a field by its name alone, in the configuration or in one of its tables."""
    if name in kind.model_fields:
        return name
    tables = {key: config_of(field.annotation) for key, field in kind.model_fields.items()}
    return next(
        (f"{key}.{name}" for key, table in tables.items() if table and name in table.model_fields),
        None,
    )


def needed(chosen: Mapping[str, str], **options: str) -> list[str]:
    """What options or a recipe must name. options: what they are called, and the recipe's keys.

    Raises UsageError where neither does.
    """
    missing = [option for option, key in options.items() if key not in chosen]
    if missing:
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise UsageError(
            f"{' and '.join(f'--{option}' for option in missing)} {verb} missing: give {them}, or "
            f"{' and '.join(missing)} in the recipe's table"
        )
    return [chosen[key] for key in options.values()]
