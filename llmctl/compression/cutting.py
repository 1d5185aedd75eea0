"""Whole parts left out: channels of feed-forward networks, heads, layers.

    channel f   ‖activation_f‖₂ · ‖W₃[:, f]‖₂
    head n      Σ over its entries h of ‖mixed_h‖₂ · ‖W_O[:, h]‖₂, over the heads that share keys
    layer       1 − cos(x, layer(x)), the mean over tokens           (Men et al. 2024, ShortGPT)

What matters least goes, by these or by the gradient (importance.py). Each layer is measured behind
those that were cut already; what is left has one shape in all layers, so the result is an ordinary
smaller model of the same architecture. (The products of norms bound what a channel adds to the
residual stream.)

D width, F channels, H head width, N heads, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.compression.calibration import Statistics, through_layers
from llmctl.compression.importance import GateImportance
from llmctl.errors import InputError
from llmctl.models.layers.attention import CausalSelfAttention
from llmctl.models.layers.feed_forward import FeedForward, GatedFeedForward, SwiGLU
from llmctl.models.spec import Backbone

LayerProgress = Callable[[int, int], None]
CHANNEL_STEP = 32
"""Channels are kept in such numbers, where there are so many: kernels like it."""


def keep_channels(
    body: Backbone,
    keep: float,
    windows_NT: Tensor | None,
    progress: LayerProgress,
    by_gradient: GateImportance | None = None,
) -> Any:
    """Leave out channels, in place; returns the configuration of what is left."""
    inner = int(body.config.intermediate_size)
    step = CHANNEL_STEP if inner >= 2 * CHANNEL_STEP else 1
    count = max(step, round(keep * inner / step) * step)

    def treat(number: int, block: nn.Module, statistics: Statistics) -> None:
        part = block.feed_forward
        if not isinstance(part, FeedForward | SwiGLU | GatedFeedForward):
            raise InputError("--method channels does not know this feed-forward network")
        if by_gradient is None:
            counted = statistics["feed_forward.contract"]
            score_F = output_scores(part.contract, counted.product_II)
        else:
            score_F = by_gradient.channels(number)
        kept_F = score_F.topk(count).indices.sort().values
        _take_inputs(part.contract, kept_F)
        if isinstance(part, FeedForward):
            _take_outputs(part.expand, kept_F)
        else:
            _take_outputs(part.gate_up, torch.cat([kept_F, kept_F + inner]))

    through_layers(body, windows_NT, treat, progress)
    return body.config.replace(intermediate_size=count)


def keep_heads(
    body: Backbone,
    keep: float,
    windows_NT: Tensor | None,
    progress: LayerProgress,
    by_gradient: GateImportance | None = None,
) -> Any:
    """Leave out heads, with the keys and values that they share, in place; returns the
    configuration of what is left.

    Raises InputError for an architecture whose heads' width follows from their number.
    """
    config = body.config
    fields = type(config).model_fields
    if "head_size" not in fields or "num_kv_heads" not in fields:
        raise InputError(
            "--method heads needs an architecture that says how wide a head is (llama, qwen2, "
            "qwen3, mistral); in this one fewer heads would be wider ones: use channels or layers"
        )
    groups, size = config.num_kv_heads, config.head_size
    each = config.num_heads // groups
    count = max(1, round(keep * groups))
    if config.hidden_size % (count * each):
        raise InputError(
            f"--keep {keep:g} leaves {count * each} heads, which do not divide the width of "
            f"{config.hidden_size}, as config.json's have to; choose another share of the "
            f"{groups} groups of heads"
        )

    def treat(number: int, block: nn.Module, statistics: Statistics) -> None:
        part = block.attention
        assert isinstance(part, CausalSelfAttention)
        if by_gradient is None:
            counted = statistics["attention.output"]
            score_I = output_scores(part.output, counted.product_II)
            score_K = score_I.view(groups, each * size).sum(1)
        else:
            score_K = by_gradient.heads(number, groups)
        kept_K = score_K.topk(count).indices.sort().values
        queries = _rows(kept_K, each * size)
        start = config.num_heads * size
        keys = start + _rows(kept_K, size)
        _take_outputs(part.query_key_value, torch.cat([queries, keys, keys + groups * size]))
        _take_inputs(part.output, queries)
        part.num_heads, part.num_kv_heads = count * each, count

    through_layers(body, windows_NT, treat, progress)
    return config.replace(num_heads=count * each, num_kv_heads=count)


def keep_layers(
    body: Backbone,
    keep: float,
    windows_NT: Tensor | None,
    progress: LayerProgress,
    by_gradient: GateImportance | None = None,
) -> Any:
    """Leave out the layers that change least, in place; returns the configuration of what is left.

    Raises InputError for an architecture whose layers differ by their number.
    """
    config, total = body.config, len(body.layers())
    if config.layers_differ or getattr(config, "scale_by_layer", False):
        raise InputError(
            "--method layers: in this architecture layers differ by their number, so none can be "
            "left out; use channels"
        )
    count = max(1, round(keep * total))
    if by_gradient is None:
        assert windows_NT is not None
        change = layer_changes(body, windows_NT)
    else:
        change = by_gradient.layers
    progress(total, total)
    kept = sorted(sorted(range(total), key=lambda layer: -change[layer])[:count])
    body.keep_layers(kept)
    return config.replace(num_layers=count)


@torch.no_grad()
def layer_changes(body: Backbone, windows_NT: Tensor) -> list[float]:
    """How much each layer turns its input: 1 − cos, the mean over tokens."""
    sums = [0.0] * len(body.layers())

    def count(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            alike = torch.cosine_similarity(inputs[0].float(), output.float(), dim=-1)
            sums[number] += float((1 - alike).sum())

        return hook

    handles = [
        block.register_forward_hook(count(number)) for number, block in enumerate(body.layers())
    ]
    try:
        for part in windows_NT.split(8):
            body.eval()(part)
    finally:
        for handle in handles:
            handle.remove()
    return [total / windows_NT.numel() for total in sums]


def output_scores(linear: nn.Linear, product_II: Tensor) -> Tensor:
    """‖x_i‖₂ · ‖W[:, i]‖₂ of each input of a matrix."""
    return product_II.diagonal().clamp(min=0).sqrt() * linear.weight.norm(dim=0)


def _rows(kept_K: Tensor, size: int) -> Tensor:
    return (kept_K[:, None] * size + torch.arange(size)).flatten()


def _take_inputs(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[:, kept].clone())
    linear.in_features = len(kept)


def _take_outputs(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[kept].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept].clone())
    linear.out_features = len(kept)
