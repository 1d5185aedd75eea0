"""Freezing: keep the lower part of a model as it is and train the rest.

Lower layers hold what is common to texts, upper ones what a task needs (Howard and Ruder 2018,
§3.3; Lee et al. 2019, "What Would Elsa Do?").
"""

from __future__ import annotations

from typing import Any

from torch import nn


def freeze_layers(model: nn.Module, count: int) -> None:
    """Keep the embeddings and the lowest ``count`` blocks of a model's body as they are.

    An output layer that is the token embedding stays with it.
    """
    body: Any = model.body
    for module in body.lowest(count):
        module.requires_grad_(False)
