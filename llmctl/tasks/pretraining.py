"""Pretraining: shards of text to a network that has learned the language, from random weights or
from those of a model (continued pretraining, as for a domain: Gururangan et al. 2020)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from llmctl import tokenizers
from llmctl.config import Config, Seconds, build
from llmctl.data.shards.files import ShardReader
from llmctl.errors import ConfigError, InputError, UsageError, did_you_mean
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.flops import flops_per_token
from llmctl.models.spec import Backbone, ModelSpec
from llmctl.tasks import pretraining_tasks, task_of
from llmctl.tasks.base import NetworkTask
from llmctl.tasks.embeddings import start_from_company
from llmctl.tasks.learned import describe_learning
from llmctl.tokenizers import Tokenizer
from llmctl.training.batches import Batches, TensorBatch
from llmctl.training.config import TrainingConfig
from llmctl.training.planning.budget import LEAST_SECONDS
from llmctl.training.planning.ladder import free_fields
from llmctl.workspace.artefacts import Artefact

DEFAULT_PRESET = "mini"
VALIDATION_SEED = 0
"""Validation draws from this, whatever the run's seed: losses stay comparable."""
EVALS_PER_RUN = 10
"""Validations in a run where ``training.eval_every`` does not say."""
SELDOM = 20
"""Steps between validations at the least, so that a short run does more training than looking."""
SAMPLED_BATCHES = 64
"""Batches on which is counted what was done to the text."""
REWARMED = 0.3
"""Share of the learning rates of fresh weights to which they rise again where training starts from
a model: the whole of them learns the new text fastest and forgets most of what was learned (Ibrahim
et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models"). How
much there is to forget depends on how much was learned. A GPT of nano size that had read the
library's documentation for 400 steps, and then its code for as many, lost 2.81, 3.09 and 3.58 nats
a token of the code with shares of 1, 0.3 and 0.1, and 5.21, 5.20 and 5.20 of the documentation
(5.07 before): one so little trained would do better with 1."""


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
    task: str | None = None
    """What it is pretrained on. Unset: the first of its architecture's tasks."""
    model: M
    objective: L
    data: D
    training: TrainingConfig = TrainingConfig()
    embeddings: Literal["auto", "random", "cooccurrence"] = "auto"
    """Where fresh token embeddings start: random, as published; cooccurrence: from which tokens
    come near which in the shards, counted in seconds, and larger, so that training doesn't
    overwrite them; auto: cooccurrence in masked pretraining, else random."""
    seed: int = 0
    """Seed of weights, order, dropout and, for BERT, pairs and masks."""
    budget: Seconds | None = Field(None, gt=0)
    """Wall clock from the command's start to the finished model, for which what is not given of
    shape, batch and schedule is chosen."""
    chosen: tuple[str, ...] = ()
    """Keys that the budget chooses; filled in by the command."""


_MUON_RATE: float = TrainingConfig.model_fields["muon_learning_rate"].default


class Pretraining(NetworkTask, Generic[L, D]):
    """Shards and what is learned from them, by fresh weights or by those of a model."""

    objective_config: type[L]
    data_config: type[D]
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What differs from the general defaults of a pretraining, as a recipe would say it."""
    embeddings: ClassVar[Literal["random", "cooccurrence"]] = "random"
    """Where fresh token embeddings start, unless it is said."""
    roles: ClassVar[tuple[str, ...]]
    """Special tokens that the task needs."""
    described: ClassVar[str]
    """What needs them, and how to learn a tokenizer that has them; for messages."""
    compile_on_cpu: ClassVar[bool] = True
    """Whether kernels of its own make a model faster on a processor too."""
    unvalidated = "the shards have no validation documents: training without a look"

    def __init__(
        self, shards: Artefact, config: PretrainConfig[Any, L, D], base: Pretrained | None = None
    ) -> None:
        """base: the model whose weights it starts from. Raises InputError if the tokenizer lacks a
        special token."""
        self.shards: Artefact = shards
        self.base = base
        self.tokenizer = tokenizers.load(shards.folder / "tokenizer")
        if missing := [role for role in self.roles if role not in self.tokenizer.special]:
            raise InputError(
                f"the tokenizer has no token for {', '.join(missing)}, {self.described}"
            )
        self.architecture = ARCHITECTURES[config.arch]
        rate = config.training.learning_rate or self.peak_rate(config.model.hidden_size) * (
            1.0 if base is None else REWARMED
        )
        model = config.model
        if base is None:
            model = model.with_vocabulary(self.tokenizer.vocab_size, self.tokenizer.special)
        open_start = config.embeddings == "auto" and base is None
        self.config: PretrainConfig[Any, L, D] = config.replace(
            model=model.model_dump(),
            training=config.training.replace(learning_rate=rate).model_dump(),
            embeddings=self.embeddings if open_start else config.embeddings,
        )

    @classmethod
    def config_type(cls, arch: str) -> type[PretrainConfig[Any, Any, Any]]:
        """The class of an architecture's configuration."""
        spec = ARCHITECTURES[arch]
        return PretrainConfig[spec.config, cls.objective_config, cls.data_config]  # type: ignore[name-defined]

    @classmethod
    def suits(cls, tokenizer: Tokenizer, config: PretrainConfig[Any, Any, Any]) -> bool:
        """Whether a tokenizer has the special tokens that a configuration needs."""
        return set(cls.roles) <= tokenizer.special.keys()

    @classmethod
    def wanted(cls, config: PretrainConfig[Any, Any, Any]) -> str:
        """What shards are to suit, and what that needs."""
        return f"--arch {config.arch} (their tokenizer needs tokens for {', '.join(cls.roles)})"

    @classmethod
    def resolve(
        cls,
        arch: str,
        preset: str | None,
        *layers: Mapping[str, Any],
        task: str | None = None,
        base: Pretrained | None = None,
    ) -> PretrainConfig[Any, Any, Any]:
        """The configuration of an architecture from a preset, or of a model, and what is laid over
        it. task: this one's name, where it isn't the architecture's first.

        Raises UsageError for an unknown preset, ConfigError for what does not go together."""
        spec = ARCHITECTURES[arch]
        if base is None:
            start = cls._preset(spec, preset)
        else:
            start = {
                "model": base.config.model_dump(),
                "objective": cls.objective_of(base),
                "data": {"sequence_length": cls._length_for(base)},
                "training": {"muon_learning_rate": REWARMED * _MUON_RATE},
            }
        known = cls.objective_config.model_fields
        published = {name: value for name, value in spec.objective.items() if name in known}
        config = build(
            cls.config_type(arch),
            {"arch": arch, "task": task, "objective": {}, "data": {}, **start},
            cls.defaults,
            {"training": spec.training, "objective": published},
            *layers,
        )
        if base is not None and config.embeddings == "cooccurrence":
            raise ConfigError(
                f"embeddings {config.embeddings} is how fresh weights start, and --from starts "
                "from those of a model; leave it out"
            )
        if base is None and config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size {config.model.vocab_size}: the vocabulary is that of the "
                "shards' tokenizer; leave it out, or tokenize with another --vocab-size"
            )
        if config.data.sequence_length > config.model.max_positions:
            raise ConfigError(
                f"data.sequence_length {config.data.sequence_length} is longer than "
                f"model.max_positions {config.model.max_positions}; raise the one or lower the "
                "other"
            )
        if getattr(config.model, "bidirectional", False):
            raise ConfigError(
                "model.bidirectional: a pretraining says itself which rows are read both ways; "
                "leave it out"
            )
        if config.chosen:
            raise ConfigError("chosen is filled in by --budget; leave it out")
        return config if config.budget is None else _with_budget(config, preset, *layers)

    @staticmethod
    def _preset(spec: ModelSpec, preset: str | None) -> dict[str, Any]:
        preset = preset or DEFAULT_PRESET
        if preset not in list(spec.presets):
            raise UsageError(
                f"--preset {preset!r} is not known{did_you_mean(str(preset), spec.presets)}; "
                f"choose one of {', '.join(spec.presets)}"
            )
        return {"model": spec.presets[preset]}

    @classmethod
    def _length_for(cls, base: Pretrained) -> int:
        """Tokens of a row where none are given: as many as the model was trained on, as far as it
        says."""
        default = cls.data_config.model_fields["sequence_length"].default
        return base.max_length if MAX_LENGTH in base.fields else min(default, base.max_length)

    @classmethod
    def objective_of(cls, base: Pretrained) -> dict[str, Any]:
        """Fields of the objective that follow from a model's heads."""
        return {}

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
    def pretrained(self, base: Pretrained) -> nn.Module:
        """The network of a model, with the task's heads and the configuration's dropout."""

    @abstractmethod
    def head_weights(self) -> float:
        """Weights of the heads that a token is multiplied with, on average."""

    def network(self) -> nn.Module:
        if self.base is not None:
            return self.pretrained(self.base)
        body = self.body()
        if self.config.embeddings == "cooccurrence" and not body.embedding().weight.is_meta:
            shards = self.shards
            start_from_company(body, shards.folder, shards.manifest.fingerprint)
        return self.model(body)

    def body(self) -> Backbone:
        """The backbone with random weights."""
        return self.architecture.build(self.config.model)

    @cached_property
    def _train(self) -> Batches:
        return self.batches("train", seed=self.config.seed)

    @property
    def batches_per_epoch(self) -> int:
        return self._train.per_epoch

    def batch(self, number: int) -> TensorBatch:
        return self._train(number)

    def validation_batches(self) -> list[TensorBatch]:
        batches = self.batches("validation", seed=VALIDATION_SEED)
        return [batches(n) for n in range(min(self.config.data.eval_batches, batches.per_epoch))]

    @property
    def eval_every(self) -> int:
        return self.config.training.eval_every or max(
            SELDOM, (self.total_steps or 1000) // EVALS_PER_RUN
        )

    @property
    def plan_facts(self) -> dict[str, Any]:
        return {"shards": self.shards.manifest.name, "steps_per_epoch": self.batches_per_epoch}

    def compiles_on(self, device: torch.device) -> bool:
        return device.type != "cpu" or self.compile_on_cpu

    def flops_per_token(self) -> float | None:
        with torch.device("meta"):
            body = self.architecture.build(self.config.model)
        return flops_per_token(body, self.config.data.sequence_length, self.head_weights())

    def reader(self, split: str) -> ShardReader:
        """The documents of a split. Raises InputError if there are none to train on."""
        reader = ShardReader(self.shards.folder, split, self.tokenizer.vocab_size)
        if split == "train" and not len(reader):
            raise InputError(
                f"shards {self.shards.folder.name} have no training documents; tokenize more text, "
                "or with a smaller --validation"
            )
        return reader

    def write(self, folder: Path, model: nn.Module) -> None:
        length = self.config.data.sequence_length
        if self.base is not None:
            length = max(length, self.base.max_length)
        fields = {MAX_LENGTH: length, **self.learned_fields}
        write_model_folder(folder, model, self.exported_tokenizer, fields)

    @property
    def learned_fields(self) -> dict[str, Any]:
        """What the model's description says of what it has learned, beside its kind."""
        return {}

    @property
    def exported_tokenizer(self) -> Tokenizer:
        """The tokenizer as the model's folder has it."""
        return self.tokenizer if self.base is None else self.base.tokenizer

    def conclude(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return describe_learning(self, summary)


def _with_budget(
    config: PretrainConfig[Any, Any, Any], preset: str | None, *layers: Mapping[str, Any]
) -> PretrainConfig[Any, Any, Any]:
    """The configuration with the keys that its budget chooses. Raises UsageError where it is too
    short, where the length of the training is given too, or where the architecture has no law."""
    assert config.budget is not None
    if config.budget < LEAST_SECONDS:
        raise UsageError(
            f"--budget {config.budget:g}s is too short: start-up, calibration and the export alone "
            f"take about {LEAST_SECONDS / 2:.0f} s; give at least {LEAST_SECONDS:.0f}s"
        )
    for key in ("time_limit", "max_steps"):
        if (value := getattr(config.training, key)) is not None:
            raise UsageError(
                f"training.{key} {value:g} and --budget {config.budget:g}s both say how long; "
                "leave one of them out"
            )
    if config.task is not None or ARCHITECTURES[config.arch].scaling is None:
        known = [name for name, spec in ARCHITECTURES.items() if spec.scaling]
        what = f"--arch {config.arch}" + (f" --task {config.task}" if config.task else "")
        raise UsageError(
            f"--budget: {what} has no scaling law yet to choose a model by; give "
            f"--preset and --set training.time_limit={config.budget:g}s in its place, or take "
            f"--arch {', '.join(known)}{' without --task' if config.task else ''}"
        )
    return config.replace(chosen=free_fields(config.arch, preset, *layers))


def sampled_batches(steps: int) -> list[int]:
    """Numbers of batches that were trained on, evenly chosen: what is said of them all is counted
    on these, made again."""
    numbers = np.linspace(0, max(steps - 1, 0), SAMPLED_BATCHES).astype(int)
    return list(np.unique(numbers).tolist())


def config_for(arch: str, task: str | None = None) -> type[PretrainConfig[Any, Any, Any]]:
    """The class of the configuration of an architecture's pretraining on a task. Raises UsageError
    for what is unknown."""
    kind: type[PretrainConfig[Any, Any, Any]] = task_of(arch, task).config_type(arch)
    return kind


def open_pretraining(
    shards: Artefact, config: PretrainConfig[Any, Any, Any]
) -> Pretraining[Any, Any]:
    """A network's pretraining with its data, and in its configuration what follows from them."""
    task: Any = task_of(config.arch, config.task)
    opened: Pretraining[Any, Any] = task(shards, config)
    return opened


def resolve(
    arch: str, preset: str | None, *layers: Mapping[str, Any], task: str | None = None
) -> Any:
    """The configuration of an architecture's pretraining from a preset and what is laid over it.

    Raises UsageError for an unknown architecture, task or preset.
    """
    return task_of(arch, task).resolve(arch, preset, *layers, **task_field(arch, task))


def task_field(arch: str, task: str | None) -> dict[str, str]:
    """A task as a configuration keeps it: the one that an architecture has by default isn't said,
    so that it is the same training whether it was asked for by name or not."""
    return {} if task in (None, pretraining_tasks(arch)[0]) else {"task": str(task)}
