"""The ladder of shapes that a budget chooses from.

They lie around the presets: depth is width / 64 and heads are 64 wide, as nanochat has them (the
shape at a given size matters little, Kaplan et al. 2020, §3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from llmctl.data.shards.files import ShardReader
from llmctl.errors import ConfigError
from llmctl.models import ARCHITECTURES
from llmctl.models.flops import multiplied_weights
from llmctl.models.spec import backbones

LADDER = [
    (2, 64), (2, 128), (3, 192), (4, 256), (5, 320), (6, 384), (8, 512), (10, 640), (12, 768),
    (16, 1024), (20, 1280), (24, 1536),
]  # fmt: skip
"""Layers and width."""
DERIVED = {"num_heads", "num_kv_heads", "head_size", "intermediate_size"}
"""Fields of a model that follow from its width where they are 0."""
MODEL_KEYS = {"num_layers", "hidden_size", *DERIVED}
TRAINING_KEYS = ("batch_size", "schedule", "warmup", "eval_every")


class Trainable(Protocol):
    """What a budget asks of a pretraining."""

    config: Any

    def build_model(self) -> nn.Module: ...
    def flops_per_token(self) -> float: ...
    def reader(self, split: str) -> ShardReader: ...


# The configurations are those of pretrainings, which stand above this.
Opener = Callable[[Any], Any]
"""A ``Trainable`` of a configuration, with what follows from its data in its own."""


def free_fields(arch: str, preset: str | None, *layers: Mapping[str, Any]) -> list[str]:
    """The keys that a budget chooses: those that neither a preset nor a layer gives."""
    given = {f"{table}.{key}" for layer in layers for table in ("model", "training")
             for key in layer.get(table, {})}  # fmt: skip
    model = [] if preset else MODEL_KEYS & set(ARCHITECTURES[arch].config.model_fields)
    keys = [f"model.{key}" for key in sorted(model)]
    return [key for key in keys + [f"training.{key}" for key in TRAINING_KEYS] if key not in given]


@dataclass
class LadderShape:
    """A shape of the ladder."""

    config: Any
    """The pretraining's configuration with it."""
    weights: int
    """Those that a token is multiplied with."""
    parameters: int
    flops: float
    """For each token."""
    timed: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Seconds and tokens of a step, by batch size."""


def ladder(config: Any, open_pretraining: Opener) -> list[LadderShape]:
    """The shapes that a configuration leaves open, each once, by their operations.

    Raises ConfigError where none goes with what is given.
    """
    open_keys = {key.partition(".")[2] for key in config.chosen if "model." in key}
    shapes: dict[tuple[int, int], LadderShape] = {}
    for layers, width in LADDER:
        fields = dict.fromkeys(DERIVED & open_keys, 0)
        fields |= {key: value for key, value in
                   {"num_layers": layers, "hidden_size": width}.items()
                   if key in open_keys}  # fmt: skip
        try:
            model = config.model.replace(**fields)
        except ValueError:  # a number of heads is given that doesn't divide this width
            continue
        key = (model.num_layers, model.hidden_size)
        if key not in shapes:
            shaped = config.replace(model=model.model_dump())
            pretraining = open_pretraining(shaped)
            with torch.device("meta"):
                network = pretraining.build_model()
            shapes[key] = LadderShape(
                shaped,
                multiplied_weights(backbones(network)["body."]),
                sum(p.numel() for p in network.parameters()),
                pretraining.flops_per_token(),
            )
    if not shapes:
        raise ConfigError(
            "no shape of the ladder goes with the model.* options given beside --budget; "
            "leave out model.num_heads"
        )
    return sorted(shapes.values(), key=lambda shape: shape.flops)
