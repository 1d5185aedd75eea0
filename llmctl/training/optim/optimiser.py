"""The optimiser of a training: AdamW (Loshchilov and Hutter 2019) for all parameters, or Muon for
the matrices of the blocks and AdamW for the rest. Weight decay is on matrices only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from llmctl.training.config import TrainingConfig
from llmctl.training.optim.muon import Muon, is_hidden_matrix


def build_optimiser(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: TrainingConfig,
    *,
    rate_scale: dict[str, float] | None = None,
    product_type: torch.dtype = torch.float32,
) -> torch.optim.AdamW:
    """The optimiser of the parameters that require a gradient.

    rate_scale: factors of the learning rate by a parameter name's prefix; default 1. Each group
    keeps its factor under ``scale``. product_type: of Muon's matrix products.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        # Biases and norms are vectors: decaying them shrinks what they merely shift or scale.
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        scale = next(
            (value for prefix, value in (rate_scale or {}).items() if name.startswith(prefix)), 1.0
        )
        if "token_embedding" in name:
            scale *= config.embedding_rate
        muon = config.optimiser == "muon" and is_hidden_matrix(name, parameter)
        groups.setdefault((decay, scale, muon), []).append(parameter)
    described = [
        {"params": members, "weight_decay": decay, "scale": scale, "muon": muon}
        for (decay, scale, muon), members in groups.items()
    ]
    options = {
        "lr": config.learning_rate,
        "betas": (config.beta_1, config.beta_2),
        "eps": config.epsilon,
        "fused": True,
    }
    if config.optimiser == "muon":
        momentum = config.muon_momentum
        return Muon(described, momentum=momentum, product_type=product_type, **options)
    return torch.optim.AdamW(described, **options)  # type: ignore[arg-type]


def set_learning_rate(
    optimiser: torch.optim.Optimizer, config: TrainingConfig, share: float
) -> None:
    """Set the rate of every group: a share of its peak, times the group's scale."""
    for group in optimiser.param_groups:
        peak = config.muon_learning_rate if group["muon"] else config.learning_rate
        group["lr"] = peak * share * group["scale"]
