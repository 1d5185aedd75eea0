"""What the table of methods knows of each: what trains, and what that leaves to be kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.peft.writing import Learned
from llmctl.models.spec import backbones


class Method(ABC):
    """A way of training a model for a task, in the table ``METHODS``."""

    name: ClassVar[str]
    """What ``--method`` takes."""
    table: ClassVar[str | None] = None
    """The field of a finetuning's configuration that describes it."""
    rate: ClassVar[float]
    """How much higher the learning rate is than for all weights."""
    new_rate: ClassVar[float] = 1.0
    """That of a task's new parts, of the method's."""
    merges: ClassVar[bool] = True
    """Whether what it adds can become part of a model's weights."""

    def check(self, config: Any, base: Pretrained) -> None:
        """Raises ConfigError where a model can't be trained so, InputError where in no way.

        config: of the finetuning.
        """
        if base.virtual is not None:
            raise InputError(
                f"{base.path} has {base.virtual.count} virtual tokens before each text, which go "
                "with the task that they were learned for; finetune the model that they are for"
            )

    def virtual_tokens(self, config: Any) -> int:
        """Tokens that will stand before each text."""
        return 0

    @abstractmethod
    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        """Freeze what is to stay and add what is to be learned, in place.

        new: names of the model's parts that start from nothing, and train with every method.
        Raises ConfigError before anything is changed.
        """

    def learned(self, model: nn.Module, config: Any, base: Pretrained) -> Learned | None:
        """What was added and learned, as PEFT keeps it; None: it is no addition."""
        return None


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze a model, the named parts apart; of these too what the body shares with them, as the
    embeddings of a decoder that is attached."""
    model.requires_grad_(False)
    body: Any = model.body
    shared = {id(parameter) for parameter in body.parameters()} if parts else set()
    for name in parts:
        for parameter in model.get_submodule(name).parameters():
            parameter.requires_grad_(id(parameter) not in shared)


class Addition(nn.Module, ABC):
    """What stands in a linear layer's place and adds to it."""

    base: nn.Linear

    @abstractmethod
    def merged(self) -> nn.Linear:
        """The linear layer that is both."""


def additions_of(model: nn.Module) -> dict[str, Addition]:
    """A model's additions by the names of the layers in its body that they stand for."""
    return {
        name.removeprefix("body."): module
        for name, module in model.named_modules()
        if isinstance(module, Addition)
    }


def merge(model: nn.Module) -> None:
    """Make the additions part of the layers, in place, and of virtual tokens what is kept of them;
    a model without any stays as it is."""
    for backbone in backbones(model).values():
        if backbone.virtual_tokens is not None:
            backbone.put_before_texts(backbone.virtual_tokens.folded())
    for name, module in list(model.named_modules()):
        if isinstance(module, Addition):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.merged())
