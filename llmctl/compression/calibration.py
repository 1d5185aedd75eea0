"""How a model reads text, layer by layer: what methods that look at inputs go by.

Layers are taken from the lowest. Each is shown what the layers below it, made smaller already, give
it, and its outputs go on to the next: two passes through each layer, however deep the network.

B batch, T tokens, D width, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.errors import InputError
from llmctl.models.spec import Backbone

CALIBRATION_TOKENS = 4096
"""Tokens that are read at once."""


@dataclass
class InputStatistics:
    """What a matrix was given."""

    product_II: Tensor
    """X Xᵀ, summed over tokens, in fp32."""
    size_I: Tensor
    """Σ |x|."""
    tokens: int = 0

    @classmethod
    def empty(cls, inputs: int) -> InputStatistics:
        return cls(torch.zeros(inputs, inputs), torch.zeros(inputs))

    def add(self, x: Tensor) -> None:
        """Count further inputs (…, I)."""
        x_MI = x.detach().reshape(-1, x.shape[-1]).float()
        self.product_II.addmm_(x_MI.T, x_MI)
        self.size_I += x_MI.abs().sum(0)
        self.tokens += len(x_MI)


Statistics = dict[str, InputStatistics]
"""By the name of each linear layer within its block."""
Treat = Callable[[int, nn.Module, Statistics], None]
"""Makes a block smaller, in place: its number, itself, and what its matrices were given."""


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a block, by their names in it."""
    return {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}


class _Enough(Exception):
    """Ends a pass through a network whose inputs are known."""


@torch.no_grad()
def through_layers(
    body: Backbone,
    windows_NT: Tensor | None,
    treat: Treat,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """Treat each layer of a network, from the lowest, by what it is given of some windows; returns
    what the highest gives then, in parts (B, T, D). Without windows each is treated as it is.

    Raises InputError for a network whose layers take more than the one below gives.
    """
    if windows_NT is None:
        for number, block in enumerate(body.layers()):
            treat(number, block, {})
            progress(number + 1, len(body.layers()))
        return []
    body.eval()
    rows = max(1, CALIBRATION_TOKENS // windows_NT.shape[1])
    passes = [_inputs_of_layers(body, part) for part in windows_NT.split(rows)]
    states = [inputs[0][0] for inputs in passes]
    for number, block in enumerate(body.layers()):
        statistics = {
            name: InputStatistics.empty(part.in_features) for name, part in linears(block).items()
        }
        with _counting(block, statistics):
            outputs = [
                block(x, *inputs[number][1:]) for x, inputs in zip(states, passes, strict=True)
            ]
        if number == 0 and len(passes[0]) > 1 and not torch.equal(outputs[0], passes[0][1][0]):
            raise InputError(
                "the layers of this architecture take more than the layer below gives; use "
                "--method round or magnitude, which look at no text"
            )
        treat(number, block, statistics)
        states = [block(x, *inputs[number][1:]) for x, inputs in zip(states, passes, strict=True)]
        progress(number + 1, len(body.layers()))
    return states


def _inputs_of_layers(body: Backbone, ids_BT: Tensor) -> list[tuple[Any, ...]]:
    """What each layer is called with. Hidden states are kept of the first two alone."""
    found: list[tuple[Any, ...]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs if len(found) < 2 else (None, *inputs[1:]))

    handles = [block.register_forward_pre_hook(keep) for block in body.layers()]
    try:
        body(ids_BT)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def _counting(block: nn.Module, statistics: Statistics) -> Iterator[None]:
    parts = linears(block)
    handles = [
        parts[name].register_forward_pre_hook(
            lambda module, inputs, counted=counted: counted.add(inputs[0])
        )
        for name, counted in statistics.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
