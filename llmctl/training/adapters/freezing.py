"""Freezing: keep the lower part of a model as it is and train the rest.

Lower layers hold what is common to texts, upper ones what a task needs (Howard and Ruder 2018,
§3.3; Lee et al. 2019, "What Would Elsa Do?").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from llmctl.formats.base import Pretrained
from llmctl.training.adapters.base import Method


def freeze_layers(model: nn.Module, count: int) -> None:
    """Keep the embeddings and the lowest ``count`` blocks of a model's body as they are.

    An output layer that is the token embedding stays with it.
    """
    body: Any = model.body
    for module in body.lowest(count):
        module.requires_grad_(False)


class Full(Method):
    """All weights train, or those above some of the lowest blocks."""

    name, rate = "full", 1.0

    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        if config.freeze_layers:
            freeze_layers(model, config.freeze_layers)


class LastLayers(Method):
    """The last blocks train, and what follows them."""

    name, rate = "last-layers", 3.0

    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        body: Any = model.body
        freeze_layers(model, len(body.layers()) - config.last_layers)
