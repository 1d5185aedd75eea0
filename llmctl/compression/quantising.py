"""A network's matrices to whole numbers, by each method: the linear layers of its blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmctl.compression.awq import check_scalable, scale_block
from llmctl.compression.calibration import Statistics, linears, through_layers
from llmctl.compression.gptq import gptq_matrix
from llmctl.compression.rounding import Grid, round_matrix
from llmctl.errors import UsageError
from llmctl.models.layers.quantised_matrix import QuantisedMatrix
from llmctl.models.spec import Backbone

GROUP_SIZES = (32, 64, 128)
"""Inputs that may share a scale."""


def check_group(body: Backbone, group: int) -> None:
    """Raises UsageError where some matrix isn't divided by groups of that many inputs."""
    sides = {part.in_features for block in body.layers() for part in linears(block).values()}
    for side in sorted(sides):
        if side % group:
            fit = [str(each) for each in GROUP_SIZES if not any(s % each for s in sides)]
            raise UsageError(
                f"--group {group} does not divide the {side} inputs of some matrices; "
                + (f"take {' or '.join(fit)}" if fit else f"none of {GROUP_SIZES} does")
            )


@torch.no_grad()
def quantise(
    body: Backbone,
    method: str,
    grid: Grid,
    windows_NT: Tensor | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, QuantisedMatrix]:
    """Quantise a network in place: each matrix becomes what its numbers stand for. Returns these by
    the matrices' names.

    windows_NT: tokens that it is calibrated on, for methods that read.
    """
    check_group(body, grid.group)
    found: dict[str, QuantisedMatrix] = {}
    prefixes = {id(module): name for name, module in body.named_modules()}

    def treat(number: int, block: nn.Module, statistics: Statistics) -> None:
        if method == "awq":
            scale_block(block, statistics, grid)
        for name, linear in linears(block).items():
            if method == "gptq":
                matrix = gptq_matrix(linear.weight, statistics[name].product_II, grid)
            else:
                matrix = round_matrix(linear.weight, grid)
            linear.weight.copy_(matrix.dequantised())
            found[f"{prefixes[id(block)]}.{name}.weight"] = matrix

    if method == "round":
        for number, block in enumerate(body.layers()):
            treat(number, block, {})
            progress(number + 1, len(body.layers()))
        return found
    if method == "awq":
        for block in body.layers():
            check_scalable(block)
    assert windows_NT is not None
    through_layers(body, windows_NT, treat, progress)
    return found
