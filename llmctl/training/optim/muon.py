"""Muon: momentum, orthogonalised, for the matrices of the blocks (Jordan et al. 2024,
kellerjordan.github.io/posts/muon), and AdamW for everything else (Loshchilov and Hutter 2019).

    M ← μ M + (1 − μ) G;   W ← W − η √max(1, m/n) · UVᵀ,   where  (1 − μ) G + μ M = U S Vᵀ

UVᵀ comes from five Newton–Schulz steps X ← a X + b (XXᵀ) X + c (XXᵀ)² X, which are matrix
products alone. Matrices of one shape are taken together, as the single ones are small. A fused
projection is orthogonalised part by part, as if its parts were matrices of their own.

P matrices of m rows and n columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.training.distributed.processes import full_tensor, is_dtensor, shard_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's: singular values come to between 0.7 and 1.2 in few steps, which is near enough."""
STEPS = 5


def orthogonalised(matrices_Pmn: Tensor, product_type: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: UVᵀ of each USVᵀ."""
    a, b, c = COEFFICIENTS
    tall = matrices_Pmn.shape[1] > matrices_Pmn.shape[2]
    x_Pmn = matrices_Pmn.mT if tall else matrices_Pmn
    x_Pmn = (x_Pmn / (x_Pmn.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(product_type)
    for _ in range(STEPS):
        gram_Pmm = x_Pmn @ x_Pmn.mT
        step_Pmm = torch.baddbmm(gram_Pmm, gram_Pmm, gram_Pmm, beta=b, alpha=c)
        x_Pmn = torch.baddbmm(x_Pmn, step_Pmm, x_Pmn, beta=a)
    return (x_Pmn.mT if tall else x_Pmn).to(matrices_Pmn.dtype)


class Muon(torch.optim.AdamW):
    """Muon for the groups with ``muon``, AdamW for the others."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float,
        product_type: torch.dtype,
        fused_rows: Mapping[nn.Parameter, Sequence[int]],
        **adamw: Any,
    ) -> None:
        """groups: as AdamW's. product_type: of the Newton–Schulz products. fused_rows: of each of
        the matrices that a projection holds, one above another."""
        super().__init__(groups, **adamw)
        self.momentum, self._product_type, self._fused_rows = momentum, product_type, fused_rows

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        assert closure is None
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        parts: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - self.momentum)
            update = weight.grad.lerp(state["momentum"], self.momentum)  # Nesterov's
            sizes = list(self._fused_rows.get(weight, (len(weight),)))
            if is_dtensor(weight):  # a share has no directions of its own
                self._update_shared(group, weight, full_tensor(update), sizes)
                continue
            for piece, target in zip(update.split(sizes), weight.split(sizes), strict=True):
                parts.setdefault(piece.shape, []).append((piece, target))
        for (rows, columns), pairs in parts.items():
            updates_Pmn = torch.stack([piece for piece, _ in pairs])
            updates_Pmn = orthogonalised(updates_Pmn, self._product_type)
            targets = [target for _, target in pairs]
            torch._foreach_mul_(targets, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(
                targets, list(updates_Pmn), alpha=-group["lr"] * _size(rows, columns)
            )

    def _update_shared(
        self, group: dict[str, Any], weight: Tensor, update: Tensor, sizes: list[int]
    ) -> None:
        """The update of a matrix of which each process has a share: all make the whole update."""
        pieces = [
            orthogonalised(piece[None], self._product_type)[0] * _size(*piece.shape)
            for piece in update.split(sizes)
        ]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(shard_like(torch.cat(pieces), weight), alpha=-group["lr"])


def _size(rows: int, columns: int) -> float:
    """√max(1, m/n): a step moves the outputs of tall matrices as much as those of others."""
    return max(1.0, rows / columns) ** 0.5
