"""LoRA: train a small addition to a frozen model (Hu et al. 2021, arXiv:2106.09685).

    y = W x + b + (α/r) B A x,   A: r × inputs, random;   B: outputs × r, zero at the start

Chosen linear layers of the blocks get A and B, so few numbers are trained and kept. As B starts at
zero, so does the addition: training starts from the model as it is. Merged, W + (α/r) B A is a
matrix like W, and the model is one like any other.

r rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.config import Config
from llmctl.errors import ConfigError, did_you_mean


class LoraConfig(Config):
    """The addition."""

    rank: int = Field(8, ge=1)
    """Rank r of the addition B·A: rows of A and columns of B."""
    alpha: float = Field(16.0, gt=0)
    """Scale α: the addition's weight is α/r, so that another rank needs no other learning rate."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the addition's inputs."""
    targets: tuple[str, ...] = ("attention", "feed_forward")
    """The linear layers that get an addition, by their names in a block or by a part of it:
    attention (in an encoder–decoder to the source too), attention.query_key_value, feed_forward,
    …; several are written a,b."""

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("targets")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name one layer at least; attention,feed_forward is all")
        return value


class LoraLinear(nn.Module):
    """A frozen linear layer and its addition."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        weight = base.weight
        self.lora_A = nn.Parameter(weight.new_empty(config.rank, base.in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(base.out_features, config.rank))
        # As a fresh linear layer's weights: the addition's size does not depend on the width.
        bound = 1 / math.sqrt(base.in_features)
        with torch.no_grad():
            self.lora_A.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        added = F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)
        return self.base(x) + self.scale * added

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer that is both."""
        self.base.weight += self.scale * self.lora_B @ self.lora_A
        return self.base


def add_lora(model: nn.Module, config: LoraConfig, *, new: tuple[str, ...] = ()) -> None:
    """Freeze a model and give its blocks' chosen layers an addition, in place.

    new: names of the model's parts that are trained too, as they start from nothing.
    Raises ConfigError for a target that the blocks don't have, or a rank beyond their layers'.
    """
    body: Any = model.body
    blocks = body.layers()
    # The last block has what the first has, and in an encoder–decoder attention to the source.
    chosen = _chosen(blocks[-1], config.targets)
    for path in chosen:
        layer = blocks[-1].get_submodule(path)
        most = min(layer.in_features, layer.out_features)
        if config.rank > most:
            raise ConfigError(
                f"lora.rank {config.rank}: {path} has no more than {most} inputs or outputs, and "
                "such an addition would be larger than the layer; lower it"
            )
    model.requires_grad_(False)
    for name in new:
        model.get_submodule(name).requires_grad_(True)
    for block in blocks:
        layers = {path for path, _ in block.named_modules()}
        for path in filter(layers.__contains__, chosen):
            parent, _, leaf = path.rpartition(".")
            module = block.get_submodule(parent)
            setattr(module, leaf, LoraLinear(getattr(module, leaf), config))


def _chosen(block: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """The paths in a block of the linear layers that some targets name."""
    paths = [path for path, module in block.named_modules() if isinstance(module, nn.Linear)]
    known = sorted({*paths, *(path.partition(".")[0] for path in paths)})
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"lora.targets: the model's blocks have no linear layer {target!r}"
                f"{did_you_mean(target, known)}; choose from {', '.join(known)}"
            )
    return [
        path
        for path in paths
        if path in targets or path.partition(".")[0].removeprefix("cross_") in targets
    ]


def additions(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer that has them, by the name of the layer in the model's body."""
    return {
        name.removeprefix("body."): (module.lora_A.detach(), module.lora_B.detach())
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
    }


def merge(model: nn.Module) -> None:
    """Make the additions part of the layers, in place; a model without any stays as it is."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.merged())
