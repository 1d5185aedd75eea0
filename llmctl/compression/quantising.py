"""A network's matrices to whole numbers, by each method: the linear layers of its blocks, and by
option the table of its token embeddings and what stands on its layers.

An embedding is a row of the table whatever else the text has, so nothing behind it can make up for
its rounding: the table is rounded by every method. A decoder's own output layer is quantised by the
method, from the states that it is given; where it shares the table, that is quantised once. Other
heads are rounded.

O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.compression.awq import best_scale, check_scalable, scale_block
from llmctl.compression.calibration import (
    InputStatistics,
    Statistics,
    linears,
    through_layers,
)
from llmctl.compression.gptq import gptq_matrix
from llmctl.compression.rounding import Grid, round_matrix
from llmctl.errors import InputError, UsageError
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.layers.norms import RMSNorm
from llmctl.models.layers.quantised_matrix import QuantisedMatrix
from llmctl.models.spec import Backbone

GROUP_SIZES = (32, 64, 128)
"""Inputs that may share a scale."""


BODY = "body."
"""What the names of a backbone's parts begin with in a network."""


@dataclass(frozen=True)
class Beside:
    """What is quantised beside the blocks."""

    embeddings: bool = False
    """The table of token embeddings."""
    head: bool = False
    """The linear layers on the backbone."""


@torch.no_grad()
def quantise(
    network: Any,
    method: str,
    grid: Grid,
    windows_NT: Tensor | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    beside: Beside = Beside(),
) -> dict[str, QuantisedMatrix]:
    """Quantise a network in place: each matrix becomes what its numbers stand for. Returns these by
    the matrices' names.

    windows_NT: tokens that it is calibrated on, for methods that read. Raises UsageError for groups
    that don't divide a matrix, InputError for what the network hasn't got.
    """
    body: Backbone = network.body
    heads = _heads(network) if beside.head else {}
    shared = isinstance(network, CausalLM | MaskedLM) and network.output is None
    table = body.embedding() if beside.embeddings or (beside.head and shared) else None
    if beside.head and not heads and table is None:
        raise InputError(
            "--head: nothing with weights stands on this network's layers; leave it out"
        )
    check_group(body, grid.group, [*heads.values(), *([] if table is None else [table])])
    found: dict[str, QuantisedMatrix] = {}
    names = {id(module): name for name, module in network.named_modules()}

    def keep(part: nn.Linear | nn.Embedding, matrix: QuantisedMatrix) -> None:
        part.weight.copy_(matrix.dequantised())
        found[f"{names[id(part)]}.weight"] = matrix

    def by_method(linear: nn.Linear, inputs: InputStatistics | None) -> None:
        if method == "gptq" and inputs is not None:
            keep(linear, gptq_matrix(linear.weight, inputs.product_II, grid))
        else:
            keep(linear, round_matrix(linear.weight, grid))

    def treat(number: int, block: nn.Module, statistics: Statistics) -> None:
        if method == "awq":
            scale_block(block, statistics, grid)
        for name, linear in linears(block).items():
            by_method(linear, statistics.get(name))

    # The table first, so that the layers are shown what they will be given.
    if table is not None:
        keep(table, round_matrix(table.weight, grid))
    if method == "awq":
        for block in body.layers():
            check_scalable(block)
    read = None if method == "round" else windows_NT
    assert method == "round" or read is not None
    states = through_layers(body, read, treat, progress)
    inputs: InputStatistics | None = None
    if states and heads and isinstance(network, CausalLM):
        inputs = InputStatistics.empty(body.config.hidden_size)
        for x_BTD in states:
            inputs.add(body.finish(x_BTD))
        if method == "awq":
            _scale_output(network, inputs, grid)
    for linear in heads.values():
        by_method(linear, inputs)
    return found


def check_group(
    body: Backbone, group: int, beside: Sequence[nn.Linear | nn.Embedding] = ()
) -> None:
    """Raises UsageError where some matrix isn't divided by groups of that many inputs."""
    parts = [*beside, *(part for block in body.layers() for part in linears(block).values())]
    sides = {part.weight.shape[1] for part in parts}
    for side in sorted(sides):
        if side % group:
            fit = [str(each) for each in GROUP_SIZES if not any(s % each for s in sides)]
            raise UsageError(
                f"--group {group} does not divide the {side} inputs of some matrices; "
                + (f"take {' or '.join(fit)}" if fit else f"none of {GROUP_SIZES} does")
            )


def _heads(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers on a network's backbone, by name."""
    return {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear) and not name.startswith(BODY)
    }


def _scale_output(model: CausalLM, inputs: InputStatistics, grid: Grid) -> None:
    """Scale an output layer's inputs as AWQ does, in place, where the norm before it has gains."""
    norm = getattr(model.body, "norm", None)
    if model.output is None or not model.body.ends_normalised:
        return
    if not isinstance(norm, RMSNorm | nn.LayerNorm) or norm.weight is None:
        return
    scale_I = best_scale(model.output.weight, inputs, grid)
    model.output.weight.mul_(scale_I)
    for part in (norm.weight, getattr(norm, "bias", None)):
        if part is not None:
            part.div_(scale_I)
