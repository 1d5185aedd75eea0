"""Weights set to zero: which, by their size or by their size times that of their inputs.

    |W_oi|                                                       magnitude (Han et al. 2015)
    |W_oi| · ‖X_i‖₂                                              Wanda (Sun et al. 2023, eq. 1)

Of each output the least go, so that all outputs keep as many. In the pattern 2:4 they are two of
each four neighbouring inputs, which accelerators skip.

O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATTERN_OF, PATTERN_KEPT = 4, 2
"""2:4: of four neighbours two are kept."""


def weight_scores(weight_OI: Tensor, product_II: Tensor | None) -> Tensor:
    """How much each weight matters, (O, I). product_II: X Xᵀ of the inputs; None: by size alone."""
    if product_II is None:
        return weight_OI.abs()
    return weight_OI.abs() * product_II.diagonal().clamp(min=0).sqrt()


def masked(weight_OI: Tensor, score_OI: Tensor, sparsity: float | None) -> Tensor:
    """The weights with the least of each output at zero. sparsity: their share; None: 2:4."""
    if sparsity is None:
        # Inputs beyond the last four stay.
        whole = weight_OI.shape[1] // PATTERN_OF * PATTERN_OF
        score_OGC = score_OI[:, :whole].unflatten(1, (-1, PATTERN_OF))
        least = score_OGC.argsort(dim=-1)[..., : PATTERN_OF - PATTERN_KEPT]
        keep_OGC = torch.ones_like(score_OGC).scatter_(-1, least, 0.0)
        kept_OI = weight_OI.clone()
        kept_OI[:, :whole] *= keep_OGC.flatten(1)
        return kept_OI
    count = int(sparsity * weight_OI.shape[1])
    least = score_OI.argsort(dim=1)[:, :count]
    return weight_OI.scatter(1, least, 0.0)
