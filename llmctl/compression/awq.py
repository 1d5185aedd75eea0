"""Scaling before rounding, as AWQ does (Lin et al. 2023, "AWQ: Activation-aware Weight Quantization
for LLM Compression and Acceleration", §3.2).

    W x = (W diag(t)) (diag(t)⁻¹ x),   t = (mean |x|)^α

Inputs that are large have weights that matter; scaled up by t they lose less in rounding. The
inverse goes into what gives the inputs, so that the network is as large and as fast as before: the
gains of the norm before attention and feed-forward, and the upper half of a gated feed-forward
network before its last matrix. α is the one of a grid with the least error of the products,
‖(Q(W diag(t)) diag(t)⁻¹ − W) X‖².

O outputs, I inputs, F feed-forward width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from llmctl.compression.calibration import InputStatistics, Statistics
from llmctl.compression.rounding import Grid, round_matrix
from llmctl.errors import InputError
from llmctl.models.decoder import Block
from llmctl.models.layers.feed_forward import FeedForward, GatedFeedForward, SwiGLU
from llmctl.models.layers.norms import RMSNorm

SCALE_EXPONENTS = np.linspace(0, 0.95, 20).tolist()
"""Values of α that are tried; 0 is plain rounding."""


def check_scalable(block: nn.Module) -> None:
    """Raises InputError for a block whose norms can't take up scales."""
    norms = [getattr(block, name, None) for name in ("norm_1", "norm_2")]
    if not isinstance(block, Block) or not all(
        isinstance(norm, RMSNorm | nn.LayerNorm) for norm in norms
    ):
        raise InputError(
            "--method awq puts scales into the norms before attention and feed-forward, and this "
            "architecture has none with gains there; use --method gptq"
        )


@torch.no_grad()
def scale_block(block: nn.Module, statistics: Statistics, grid: Grid) -> None:
    """Scale the inputs of a block's matrices, in place; what it computes stays the same."""
    first = ((block.norm_1, "attention.query_key_value"), (block.norm_2, first_of(block)))
    for norm, name in first:
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        scale_I = best_scale(linear.weight, statistics[name], grid)
        linear.weight.mul_(scale_I)
        assert isinstance(norm, RMSNorm | nn.LayerNorm)
        norm.weight.div_(scale_I)
        if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
            norm.bias.div_(scale_I)
    feed_forward = block.feed_forward
    if isinstance(feed_forward, SwiGLU | GatedFeedForward):
        name = "feed_forward.contract"
        scale_F = best_scale(feed_forward.contract.weight, statistics[name], grid)
        feed_forward.contract.weight.mul_(scale_F)
        # The lower half is behind an activation, which a scale doesn't pass.
        feed_forward.gate_up.weight[len(scale_F) :].div_(scale_F[:, None])


def first_of(block: nn.Module) -> str:
    """The name of the first matrix of a block's feed-forward network."""
    plain = isinstance(block.feed_forward, FeedForward)
    return "feed_forward.expand" if plain else "feed_forward.gate_up"


def best_scale(weight_OI: Tensor, inputs: InputStatistics, grid: Grid) -> Tensor:
    """The scales t (I,) of the exponent with the least error."""
    mean_I = (inputs.size_I / max(inputs.tokens, 1)).clamp(min=1e-8)
    best, least = torch.ones_like(mean_I), float("inf")
    for exponent in SCALE_EXPONENTS:
        scale_I = mean_I**exponent
        # Around 1, so that no gain of a norm leaves the range of its type.
        scale_I = scale_I / (scale_I.max() * scale_I.min()).sqrt()
        kept_OI = round_matrix(weight_OI * scale_I, grid).dequantised() / scale_I
        error = product_error(kept_OI - weight_OI, inputs.product_II)
        if error < least:
            best, least = scale_I, error
    return best


def product_error(difference_OI: Tensor, product_II: Tensor) -> float:
    """‖Δ X‖² of a difference of weights, from X Xᵀ."""
    return float(((difference_OI @ product_II) * difference_OI).sum())
