"""LoRA: train a small addition to a frozen model (Hu et al. 2021, arXiv:2106.09685).

    y = W x + b + s B A x,   A: r × inputs, random;   B: outputs × r, zero at the start

Chosen linear layers of the blocks get A and B, so few numbers are trained and kept. As B starts at
zero, so does the addition: training starts from the model as it is. Merged, W + s B A is a matrix
like W, and the model is one like any other. s is α/r, or α/√r with rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732), by which the addition's size doesn't fall as the rank grows.

DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5 and 11) learns the length m of each output's weights
beside their direction; in the gradient the norm is taken for a constant:

    y = m ⊙ (W + s B A) x / ‖W + s B A‖ + b,   m = ‖W‖ at the start

r rank, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.config import Config
from llmctl.errors import ConfigError, did_you_mean
from llmctl.formats.base import Pretrained
from llmctl.formats.peft.writing import Learned, their_layers
from llmctl.training.adapters.base import Addition, Method, additions_of, freeze_all_but


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
    dora: bool = False
    """Learn the length of each output's weights too, and by the addition their direction (DoRA):
    nearer to training all weights, and slower."""
    rslora: bool = False
    """Weigh the addition by α/√r (rsLoRA): for ranks of 32 and more."""

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

    @property
    def scale(self) -> float:
        """What the addition is multiplied by, s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoraLinear(Addition):
    """A frozen linear layer and its addition."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout)
        weight = base.weight
        self.lora_A = nn.Parameter(weight.new_empty(config.rank, base.in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(base.out_features, config.rank))
        self.magnitude: nn.Parameter | None = None
        if config.dora:
            self.magnitude = nn.Parameter(weight.detach().norm(dim=1))
        # As a fresh linear layer's weights: the addition's size does not depend on the width.
        bound = 1 / math.sqrt(base.in_features)
        with torch.no_grad():
            self.lora_A.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        dropped = self.dropout(x)
        added = self.scale * F.linear(F.linear(dropped, self.lora_A), self.lora_B)
        if self.magnitude is None:
            return self.base(x) + added
        with torch.no_grad():
            length_O = self._longer().norm(dim=1)
        factor_O = (self.magnitude / length_O).to(x.dtype)
        # What is dropped is dropped of the direction as a whole.
        longer = F.linear(dropped, self.base.weight)
        return self.base(x) + (factor_O - 1) * longer + factor_O * added

    def _longer(self) -> Tensor:
        """W + s B A."""
        return self.base.weight + self.scale * self.lora_B @ self.lora_A

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer that is both."""
        weight = self._longer()
        if self.magnitude is not None:
            weight = weight * (self.magnitude / weight.norm(dim=1))[:, None]
        self.base.weight.copy_(weight)
        return self.base


class Lora(Method):
    """A small addition to the blocks' matrices trains."""

    name, table, rate = "lora", "lora", 3.0

    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        add_lora(model, config.lora, new=new)

    def learned(self, model: nn.Module, config: Any, base: Pretrained) -> Learned:
        return learned(model, config.lora, base)


def add_lora(model: nn.Module, config: LoraConfig, *, new: Sequence[str] = ()) -> None:
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
    freeze_all_but(model, new)
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


def learned(model: nn.Module, config: LoraConfig, base: Pretrained) -> Learned:
    """The additions as PEFT keeps them: where ours hold several of their layers in one matrix, the
    parts share A, and each has its rows of B and of m."""
    tensors, targets, transposed = {}, [], False
    for name, layer in additions_of(model).items():
        assert isinstance(layer, LoraLinear)
        for theirs, rows, turned in their_layers(name, len(layer.lora_B), base.spec, base.config):
            # safetensors refuses tensors that share memory.
            tensors[f"{theirs}.lora_A.weight"] = layer.lora_A.detach().clone()
            tensors[f"{theirs}.lora_B.weight"] = layer.lora_B.detach()[rows]
            if layer.magnitude is not None:
                tensors[f"{theirs}.lora_magnitude_vector"] = layer.magnitude.detach()[rows]
            targets.append(theirs)
            transposed = transposed or turned
    fields = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        # Whole names: the end of one may be the end of another, as with BERT's output.dense.
        "target_modules": sorted(targets),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": config.rslora,
        "use_dora": config.dora,
    }
    return Learned(fields, tensors)
