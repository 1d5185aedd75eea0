"""Finetuning: a pretrained model and a file of examples to a model that does a task."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.config import Config, build
from llmctl.errors import ConfigError
from llmctl.formats.base import Pretrained
from llmctl.formats.peft.folder import Adapter, Peft
from llmctl.parsing import read_json_object
from llmctl.tasks import DEFAULT_TASK, finetuning_task
from llmctl.tasks.base import NetworkTask
from llmctl.tokenizers import load
from llmctl.training.adapters import METHODS
from llmctl.training.adapters.base import merge
from llmctl.training.adapters.lora import LoraConfig
from llmctl.training.adapters.prefix import PrefixConfig
from llmctl.training.adapters.prompt import PromptConfig
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.progress import Progress
from llmctl.training.run import ADAPTER
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import published_folder
from llmctl.workspace.manifests import InputRecord

SCRATCH = "scratch"
LAST_LAYERS = 2

Method = Literal["full", "lora", "last-layers", "ia3", "bitfit", "prompt", "prefix", "ptuning"]
"""The names of ``METHODS``."""

METHOD_FACTOR: dict[str, float] = {name: method.rate for name, method in METHODS.items()}
"""How much higher the learning rate is than for all weights. Measured by the validation loss on 500
labelled texts and 850 instructions, from a GPT-2 and a Llama of 4 layers × 128 that had read two
million tokens: of 1, 3 and 10 for LoRA (10 was 0.04 nats better on instructions, and ruined
classifiers), of 1 and 3 for the last layers.
Those of the other methods by one GPT of 32 wide and 101 labelled texts, of two rates each: a
projected prefix was worse by 0.4 nats with three times as much, a direct one and a soft prompt
better by 0.2 than with a third."""


def scale_lr_by_width(rate: float, width: int) -> float:
    """A rate that was found for a body 128 wide, for another: a step then changes each layer's
    output as much (Yang et al. 2022, μP). Narrower ones have the same."""
    return rate * 128 / max(width, 128)


def careful_peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
    """The learning rate of tasks that a BERT is finetuned on: 3e-4 up to 128 wide, falling with the
    width to the 5e-5 that Devlin et al. 2018 (§A.3) give for BERT-base, 768 wide. Decoders
    measured best at 1e-3 of 3e-4, 1e-3 and 3e-3 (see ``METHOD_FACTOR``). Random weights have
    nothing to lose and further to go: 1e-3, so that the comparison is with their best."""
    low = base.spec.kind == "encoder" and not scratch
    return scale_lr_by_width(
        (3e-4 if low else 1e-3) * METHOD_FACTOR[method], base.config.hidden_size
    )


class FinetuneConfig(Config):
    """What decides a finetuning, whatever its task."""

    task: str
    """What is learned."""
    method: Method = "full"
    """What trains: full, everything; lora, a small addition to the blocks' matrices; last-layers,
    the last blocks and what follows them; ia3, a factor for each key, value and inner unit; bitfit,
    the biases; prompt, the embeddings of virtual tokens before each text; ptuning and prefix, their
    keys and values in each layer, prefix through a small network. What a task begins anew trains
    always."""
    freeze_layers: int = Field(0, ge=0)
    """With the method full: the embeddings and this many of the lowest blocks stay as they are."""
    last_layers: int = Field(LAST_LAYERS, ge=1)
    """With the method last-layers: how many blocks train."""
    lora: LoraConfig = LoraConfig()
    prompt: PromptConfig = PromptConfig()
    prefix: PrefixConfig = PrefixConfig()
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
        for table in {method.table for method in METHODS.values() if method.table}:
            owners = [name for name, method in METHODS.items() if method.table == table]
            untouched = getattr(self, table) == type(self).model_fields[table].default
            if self.method not in owners and not untouched:
                raise ValueError(
                    f"{table}.* goes with --method {' or '.join(owners)}, and --method is "
                    f"{self.method}"
                )
        if self.method == "ptuning" and self.prefix.projection:
            raise ValueError("prefix.projection goes with --method prefix; ptuning has none")
        if self.method != "last-layers" and self.last_layers != LAST_LAYERS:
            raise ValueError(
                f"last_layers goes with --method last-layers, and --method is {self.method}"
            )
        return self


class FinetuningTask(NetworkTask):
    """A file of examples, and the network of a model to train on them."""

    base: Pretrained
    config: FinetuneConfig
    config_type: ClassVar[type[FinetuneConfig]]
    backbones: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    """Kinds of backbones that it can be learned with."""
    lacks: ClassVar[str] = ""
    """What a model of other ``kinds`` lacks, and which don't, for a message."""
    peft_task: ClassVar[str]
    """The task's name in PEFT."""
    beside_adapter: ClassVar[tuple[str, ...]] = ()
    """Folders of the model's that an adapter needs beside it, too."""
    keeps_best = True
    starts_alone: ClassVar[bool] = False
    """Whether it has a network to train where none is named to start from."""
    train_examples: int
    held_out_examples: int

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: FinetuneConfig,
        *,
        start: str,
        scratch: bool = False,
    ) -> None:
        """start: what the weights come from, as it was given. scratch: they are random, whatever
        start says. Raises ConfigError where more blocks are named than the model has."""
        check_method(config, base)
        self.data, self.base, self.start = data, base, start
        self.scratch = scratch or start == SCRATCH
        training = config.training
        rate = training.learning_rate or self.peak_rate(base, config.method, scratch=self.scratch)
        self.config = config.replace(training=training.replace(learning_rate=rate).model_dump())

    @classmethod
    def resolve(cls, *layers: Mapping[str, Any]) -> FinetuneConfig:
        """The configuration from the defaults and what is laid over them."""
        default = cls.config_type()  # type: ignore[call-arg]
        defaults = {"task": default.task, "training": default.training.model_dump()}
        return build(cls.config_type, defaults, *layers)

    @classmethod
    def variant(cls, config: Any) -> type[Self]:
        """The class that does what a configuration asks for, where that is one of several."""
        return cls

    @classmethod
    def kinds(cls, config: Any) -> tuple[str, ...]:
        """What a model must do that it can start from; (): whatever it does."""
        return ()

    @classmethod
    def further_inputs(cls, config: Any) -> list[InputRecord]:
        """Files beside the data that the configuration names."""
        return []

    @classmethod
    def check_start(cls, config: Any, start: str) -> None:
        """Raises UsageError where what is named to start from and the configuration both say which
        network it is."""
        return

    @classmethod
    def open_teachers(cls, workspace: Workspace, config: Any) -> Any:
        """The ``Teachers`` that are learned from, where there are some beside what is trained."""
        return None

    @classmethod
    def with_teachers(cls, teachers: Any) -> Any:
        """The class that learns from such teachers; it is given them as ``teachers``."""
        return cls

    @classmethod
    def new_student(cls, config: Any, teachers: Any) -> tuple[Pretrained, str]:
        """The network to train where none is named to start from, and what it is in words."""
        raise NotImplementedError

    @staticmethod
    @abstractmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given."""

    @abstractmethod
    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        """The new parts in Hugging Face's names."""

    @property
    @abstractmethod
    def new_parts(self) -> tuple[str, ...]:
        """Names of the network's parts that start anew; they train with every method."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What follows from the data, as plans and manifests keep it."""

    @property
    def manifest_config(self) -> dict[str, Any]:
        model = self.base.config.model_dump(mode="json")
        return {**super().manifest_config, "model": model, "from": self.start, **self.facts}

    @property
    def plan_facts(self) -> dict[str, Any]:
        return {
            "from": self.start,
            "data": str(self.data),
            "train_examples": self.train_examples,
            "validation_examples": self.held_out_examples,
            **self.facts,
        }

    def text_length(self, asked: int) -> int:
        """Tokens of a text that are read: as many as are asked for, or, 0, as in pretraining.
        Raises ConfigError for more than the model takes."""
        if asked > self.base.longest_text:
            raise ConfigError(
                f"data.max_length {asked} is longer than the model's context; use at most "
                f"{self.base.longest_text}"
            )
        return asked or self.base.max_length

    @property
    def rate_scale(self) -> dict[str, float]:
        # What starts from nothing has the rate of all weights, whatever the method's is.
        scale = METHODS[self.config.method].new_rate
        return {} if scale == 1.0 else dict.fromkeys(self.new_parts, scale)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.train_examples // self.config.training.batch_size)

    @property
    def eval_every(self) -> int:
        return self.config.training.eval_every or self.batches_per_epoch

    @property
    def patience(self) -> int:
        return self.config.patience

    def build_model(self) -> nn.Module:
        """The network, with what the method leaves alone frozen."""
        model, config = super().build_model(), self.config
        METHODS[config.method].prepare(model, config, self.base, self.new_parts)
        return model

    def export(self, model: nn.Module, progress: Progress, folder: Path) -> dict[str, Any]:
        """Write the model folder, and what a method added beside it or into it; returns figures
        for the summary."""
        # 0 where nothing was held out: then the last weights are the model.
        if best_step := progress.best_step:
            store = CheckpointStore(folder.parent / "checkpoints", keep=1)
            model.load_state_dict(store.load_best(best_step))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        method = METHODS[self.config.method]
        learned = method.learned(model, self.config, self.base)
        merge(model)
        figures = super().export(model, progress, folder)
        if learned is not None:
            adapter = Adapter(learned, self.base, self.heads(model), self.peft_task)
            if not method.merges:
                adapter.write(folder)
            record = read_json_object(folder / "config.json", "")
            with published_folder(folder.with_name(ADAPTER)) as beside:
                Peft().save(beside, adapter, load(folder), record)
                for name in self.beside_adapter:
                    shutil.copytree(folder / name, beside / name)
        return {
            **figures,
            "trainable_parameters": trained,
            "best_step": best_step,
            **({"criterion": progress.best} if best_step else {}),
            "train_examples": self.train_examples,
            "validation_examples": self.held_out_examples,
        }


def resolve(task: str | None, *layers: Mapping[str, Any]) -> FinetuneConfig:
    """The configuration of a task from its defaults and what is laid over them.

    task: by default what the last layer says that names one. Raises UsageError for an unknown task.
    """
    named = (layer["task"] for layer in reversed(layers) if "task" in layer)
    task = task or next(named, None) or DEFAULT_TASK
    config: FinetuneConfig = finetuning_task(task).resolve(*layers)
    return config


def check_method(config: FinetuneConfig, base: Pretrained) -> None:
    """Raises ConfigError where a model can't be trained by the method, InputError where by none."""
    check_layers(config, base)
    METHODS[config.method].check(config, base)


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
