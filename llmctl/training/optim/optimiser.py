"""The optimiser of a training: AdamW (Loshchilov and Hutter 2019) for all parameters, or Muon for
the matrices of the blocks and AdamW for the rest. Weight decay is on matrices only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llmctl.models.spec import roles_of
from llmctl.training.config import TrainingConfig
from llmctl.training.optim.muon import Muon


def build_optimiser(
    model: nn.Module,
    config: TrainingConfig,
    *,
    rate_scale: dict[str, float] | None = None,
    product_type: torch.dtype = torch.float32,
) -> torch.optim.AdamW:
    """The optimiser of a model's parameters that require a gradient.

    rate_scale: factors of the learning rate by a parameter name's prefix; default 1. Each group
    keeps its factor under ``scale``. product_type: of Muon's matrix products.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    roles = roles_of(model)
    fused_rows: dict[nn.Parameter, Sequence[int]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = roles[name]
        if role.fused:
            fused_rows[parameter] = role.fused
        # Biases and norms are vectors: decaying them shrinks what they merely shift or scale.
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        scale = next(
            (value for prefix, value in (rate_scale or {}).items() if name.startswith(prefix)), 1.0
        )
        if role.kind == "token-embedding":
            scale *= config.embedding_rate
        muon = config.optimiser == "muon" and role.kind == "matrix"
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
        return Muon(
            described,
            momentum=config.muon_momentum,
            product_type=product_type,
            fused_rows=fused_rows,
            **options,
        )
    return torch.optim.AdamW(described, **options)  # type: ignore[arg-type]


def set_learning_rate(
    optimiser: torch.optim.Optimizer, config: TrainingConfig, share: float
) -> None:
    """Set the rate of every group: a share of its peak, times the group's scale."""
    for group in optimiser.param_groups:
        peak = config.muon_learning_rate if group["muon"] else config.learning_rate
        group["lr"] = peak * share * group["scale"]
