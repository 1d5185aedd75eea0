"""Logistic regression to its optimum, as scikit-learn's LogisticRegression poses it.

    minimise over W, b   ½ ‖W‖² + C Σ over n of −log softmax(W xₙ + b)[yₙ]

With two classes there is one row of weights, of which half is added to the one class and half taken
from the other. N examples, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_STEPS = 500
GRADIENT_TOLERANCE = 1e-9


def fit_logistic(
    features_ND: Tensor, labels_N: Tensor, classes: int, *, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and biases (C,) in fp64. strength: the C above, the inverse of the penalty's
    weight.

    Raises ValueError unless there are two classes or more.
    """
    if classes < 2:
        raise ValueError(f"{classes} classes: there is nothing to tell apart")
    x_ND = features_ND.double()
    rows = 1 if classes == 2 else classes
    weight = torch.zeros(rows, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(rows, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_STEPS,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        logits_NC = _both(x_ND @ weight.T + bias) if rows == 1 else x_ND @ weight.T + bias
        nll = F.cross_entropy(logits_NC, labels_N, reduction="sum")
        loss = weight.square().sum() / 2 + strength * nll
        loss.backward()
        return loss

    solver.step(objective)
    with torch.no_grad():
        if rows == 1:
            return torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        return weight.detach(), bias.detach()


def _both(logits_N1: Tensor) -> Tensor:
    """The logits (N, 2) of two classes from that of the second."""
    return torch.cat([-logits_N1 / 2, logits_N1 / 2], dim=1)
