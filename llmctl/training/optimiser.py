"""AdamW (Loshchilov and Hutter 2019), with weight decay on matrices only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from llmctl.training.config import TrainingConfig


def build_optimiser(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: TrainingConfig,
    *,
    rate_scale: dict[str, float] | None = None,
) -> torch.optim.AdamW:
    """The optimiser of the parameters that require a gradient.

    rate_scale: factors of the learning rate by a parameter name's prefix; default 1. Each group
    keeps its factor under ``scale``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        # Biases and norms are vectors: decaying them shrinks what they merely shift or scale.
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        scale = next(
            (value for prefix, value in (rate_scale or {}).items() if name.startswith(prefix)), 1.0
        )
        groups.setdefault((decay, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "scale": scale}
            for (decay, scale), members in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.beta_1, config.beta_2),
        eps=config.epsilon,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, times the group's scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
