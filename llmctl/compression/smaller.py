"""A model made smaller, and its folder: one way in for every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.compression import COMPRESSION_METHODS
from llmctl.compression.calibration import Statistics, linears, through_layers
from llmctl.compression.config import CompressConfig
from llmctl.compression.cutting import LayerProgress, keep_channels, keep_heads, keep_layers
from llmctl.compression.importance import CalibrationRows, GateImportance
from llmctl.compression.masking import masked, weight_scores
from llmctl.compression.quantising import Beside, quantise
from llmctl.compression.rounding import Grid
from llmctl.formats.base import Pretrained
from llmctl.formats.huggingface.packed import Packing, pack_folder
from llmctl.formats.rewriting import write_rewritten
from llmctl.models.layers.quantised_matrix import QuantisedMatrix
from llmctl.models.spec import HUGGING_FACE

CUTTERS = {"channels": keep_channels, "heads": keep_heads, "layers": keep_layers}
"""What leaves parts out, by method."""
HALF_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Smaller:
    """What a method made of a model."""

    model: Pretrained
    """With its own configuration and weights."""
    matrices: Mapping[str, QuantisedMatrix]
    """Those in whole numbers, by their names in the network."""
    zeros: float
    """Share of the blocks' weights that are zero."""


@torch.no_grad()
def make_smaller(
    model: Pretrained,
    config: CompressConfig,
    windows_NT: Tensor | None,
    progress: LayerProgress,
    calibration: CalibrationRows | None = None,
) -> Smaller:
    """Apply a method to a model, which stays as it is.

    windows_NT: tokens to calibrate on, for a method that reads. calibration: rows whose loss tells
    what matters, by the gradient. Raises UsageError or InputError for what the model can't have.
    """
    network: Any = model.network().eval()
    body, family = network.body, COMPRESSION_METHODS[config.method].family
    shape, matrices = model.config, {}
    if family == "quantise":
        grid = Grid(config.bits, config.group, config.symmetric)
        beside = Beside(config.embeddings, config.head)
        matrices = quantise(network, config.method, grid, windows_NT, progress, beside)
    elif family == "mask":
        _mask(body, config, windows_NT, progress)
    else:
        by_gradient = None if calibration is None else GateImportance(network, calibration)
        shape = CUTTERS[config.method](body, config.keep, windows_NT, progress, by_gradient)
    weights = [part.weight for block in body.layers() for part in linears(block).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    state = network.state_dict()
    return Smaller(
        replace(model, config=shape, tensors=state, quantised={}), matrices, zeros / max(total, 1)
    )


def write_smaller(
    smaller: Smaller, start: Pretrained, config: CompressConfig, folder: Path
) -> None:
    """Write it as a folder in Hugging Face's layout; whole numbers as compressed-tensors has
    them. Other tensors of a model that was in halves stay so."""
    write_rewritten(smaller.model, folder)
    if smaller.matrices:
        names = smaller.model.spec.weights[HUGGING_FACE]
        packing = Packing(config.bits, config.group, config.symmetric)
        types = {start.tensors[name].dtype for name in start.tensors if name not in start.quantised}
        rest = types.pop() if len(types) == 1 and types <= {*HALF_TYPES} else torch.float32
        pack_folder(
            folder, smaller.matrices, packing, names, smaller.model.config,
            kind=smaller.model.kind, rest=rest,
        )  # fmt: skip


def _mask(
    body: Any, config: CompressConfig, windows_NT: Tensor | None, progress: LayerProgress
) -> None:
    sparsity = None if config.pattern else config.sparsity

    def treat(number: int, block: Any, statistics: Statistics) -> None:
        for name, linear in linears(block).items():
            counted = statistics.get(name)
            score_OI = weight_scores(linear.weight, counted.product_II if counted else None)
            linear.weight.copy_(masked(linear.weight, score_OI, sparsity))

    through_layers(body, windows_NT, treat, progress)
