"""Logistic regression for several classes, as probes are: by L-BFGS (Liu and Nocedal 1989).

    min  Σ cross-entropy(x W + b, y) + ½ ‖W‖²

over coordinates of mean 0 and variance 1. N examples, D coordinates, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_ITERATIONS = 200


@dataclass(frozen=True)
class SoftmaxRegression:
    """What was learned."""

    mean_D: Tensor
    scale_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor

    def classes(self, x_ND: Tensor) -> Tensor:
        """The likeliest class (N,) of each."""
        standard_ND = (x_ND - self.mean_D) / self.scale_D
        return torch.addmm(self.bias_C, standard_ND, self.weight_DC).argmax(-1)


def fit(x_ND: Tensor, y_N: Tensor, num_classes: int) -> SoftmaxRegression:
    """Learn classes, 0 to C - 1, from coordinates in fp32."""
    mean_D, scale_D = x_ND.mean(0), x_ND.std(0, correction=0)
    scale_D = torch.where(scale_D > 0, scale_D, torch.ones_like(scale_D))
    standard_ND = (x_ND - mean_D) / scale_D
    weight_DC = torch.zeros(x_ND.shape[1], num_classes, device=x_ND.device, requires_grad=True)
    bias_C = torch.zeros(num_classes, device=x_ND.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight_DC, bias_C],
        max_iter=MOST_ITERATIONS,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits_NC = torch.addmm(bias_C, standard_ND, weight_DC)
        penalty = weight_DC.square().sum() / 2
        # Divided by N, so that tolerances mean the same whatever N is.
        value = F.cross_entropy(logits_NC, y_N) + penalty / len(y_N)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return SoftmaxRegression(mean_D, scale_D, weight_DC.detach(), bias_C.detach())
