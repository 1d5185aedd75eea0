"""Cross-entropy of a linear layer's softmax over a large vocabulary, without a table of logits.

    loss = Σₘ −log softmax(zₘ)[yₘ] + ζ (log Σᵥ exp zₘᵥ)²,   zₘ = W hₘ + b  or  c tanh(W hₘ / c)

The logits of a batch are the largest tensor of a small model, and every pass over them costs more
than the product that makes them. So a few rows are taken at a time, few enough for the cache:
their logits become their gradient, softmax(z) − onehot(y), in place, and are used up at once. The
gradients are thus made on the way forward, and only scaled on the way back.

With label smoothing ε the target is (1 − ε) onehot(y) + ε / V instead of onehot(y) (Szegedy et al.
2016, §7), and the loss the cross-entropy with that. The second term, with a weight ζ of 1e-4 or so,
keeps the logits from drifting (PaLM's z-loss, Chowdhery et al. 2022, §5); the cap c keeps them
small (Gemma 2, Riviere et al. 2024, §2).

M scored tokens, R of them at a time, D width, V vocabulary, W the vocabulary filled up.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llmctl.objectives.base import IGNORED

ROWS_ON_CPU = 512
"""With 8,000 pieces sixteen megabytes of logits. Fewer rows make slower products, more rows leave
the cache; measured for 8,000 to 50,000 pieces of width 256 to 768."""
FEW_LOGITS = 1 << 21
"""That many are taken at a time with any number of rows: characters make small tables."""
ROWS_ELSEWHERE = 4096
"""On an accelerator the memory saved still counts, and each group of rows costs its launches."""
ROWS_COMPILED = 8192
"""Compiled, nothing of a group's size is kept but its product and that product's gradient."""
ALIGNED = 64
"""Columns of a product that an accelerator's matrix units take at full speed in multiples of."""

_compiled = ContextVar("compiled", default=False)


@contextlib.contextmanager
def compiled_cross_entropy(on: bool) -> Iterator[None]:
    """Within, on an accelerator, the passes over logits are fused by a compiler if ``on``."""
    token = _compiled.set(on)
    try:
        yield
    finally:
        _compiled.reset(token)


def rows_at_a_time(device: torch.device, vocab_size: int) -> int:
    """Of logits, in fp32; with a cap two such tables are there."""
    rows = ROWS_ON_CPU if device.type == "cpu" else ROWS_ELSEWHERE
    return max(rows, FEW_LOGITS // vocab_size)


def linear_cross_entropy(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_M: Tensor,
    *,
    cap: float | None = None,
    z_weight: float = 0.0,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The summed loss in nats, and how many labels had the largest logit.

    labels_M: int64 ids; what is IGNORED (-100) is not scored. cap, z_weight, smoothing: c, ζ and ε
    above.
    Products are in the type of an enclosing autocast, sums in that of ``hidden_MD``. Can be
    differentiated once.
    """
    device = hidden_MD.device.type
    low = torch.is_autocast_enabled(device)
    product_type = torch.get_autocast_dtype(device) if low else hidden_MD.dtype
    loss_function = (
        _CompiledCrossEntropy if _compiled.get() and device == "cuda" else _LinearCrossEntropy
    )
    with torch.autocast(device, enabled=False):
        loss, correct = loss_function.apply(
            hidden_MD,
            weight_VD,
            bias_V,
            labels_M,
            product_type,
            cap,
            z_weight,
            smoothing,
            torch.is_grad_enabled(),
        )
    return loss, correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_M: Tensor,
        product_type: torch.dtype,
        cap: float | None,
        z_weight: float,
        smoothing: float,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        low_MD, low_VD = hidden_MD.to(product_type), weight_VD.to(product_type)
        same_type = low_MD.dtype == hidden_MD.dtype == weight_VD.dtype
        loss = hidden_MD.new_zeros(())
        correct = labels_M.new_zeros(())
        grad_V: Tensor | None = None
        if with_gradient:
            grad_MD, grad_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
            grad_V = None if bias_V is None else torch.zeros_like(bias_V)
        rows = rows_at_a_time(hidden_MD.device, len(weight_VD))
        z_MV = hidden_MD.new_empty(min(rows, len(labels_M)), len(weight_VD))
        slope_MV = torch.empty_like(z_MV) if cap is not None and with_gradient else None
        for begin in range(0, len(labels_M), rows):
            here = slice(begin, begin + rows)
            scored_R1 = labels_M[here, None] != IGNORED
            label_R1 = labels_M[here, None].where(scored_R1, 0)
            z_RV = z_MV[: len(label_R1)]
            if same_type:
                torch.mm(low_MD[here], low_VD.T, out=z_RV)
            else:
                z_RV.copy_(low_MD[here] @ low_VD.T)
            if bias_V is not None:
                z_RV.add_(bias_V)
            if cap is not None:
                z_RV.div_(cap).tanh_()
                if slope_MV is not None:
                    slope_RV = torch.mul(z_RV, z_RV, out=slope_MV[: len(z_RV)])
                z_RV.mul_(cap)
            top_R1, true_R1 = z_RV.amax(1, keepdim=True), z_RV.gather(1, label_R1)
            correct += ((true_R1 == top_R1) & scored_R1).sum()
            target_R1 = true_R1
            if smoothing:
                target_R1 = torch.lerp(true_R1, z_RV.mean(1, keepdim=True), smoothing)
            sum_R1 = z_RV.sub_(top_R1).exp_().sum(1, keepdim=True)
            log_sum_R1 = sum_R1.log() + top_R1
            loss += (log_sum_R1 - target_R1 + z_weight * log_sum_R1**2).mul_(scored_R1).sum()
            if not with_gradient:
                continue
            # With r = 1 + 2 ζ log Σ exp z the gradient of a row is r softmax(z) - target. What
            # scales whole rows is left to the other side of each product, which is narrower.
            r_R1 = 1 + 2 * z_weight * log_sum_R1
            unit_R1 = sum_R1 / r_R1
            grad_RV = z_RV.scatter_add_(1, label_R1, (smoothing - 1) * unit_R1)
            if smoothing:
                grad_RV.sub_(unit_R1 * (smoothing / len(weight_VD)))
            scale_R1 = scored_R1 * r_R1 / sum_R1
            if slope_MV is not None:
                grad_RV.addcmul_(grad_RV, slope_RV, value=-1)  # tanh' = 1 - tanh²
            if grad_V is not None:
                grad_V += (scale_R1.T @ grad_RV)[0]
            if same_type:  # added up by the product itself: no pass over V × D for each few rows
                torch.mm(grad_RV, low_VD, out=grad_MD[here]).mul_(scale_R1)
                grad_VD.addmm_(grad_RV.T, low_MD[here] * scale_R1)
            else:
                low_RV = grad_RV.to(product_type)
                grad_MD[here] = (low_RV @ low_VD).to(hidden_MD.dtype).mul_(scale_R1)
                grad_VD += low_RV.T @ (hidden_MD[here] * scale_R1).to(product_type)
        if with_gradient:
            ctx.save_for_backward(grad_MD, grad_VD, grad_V)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_MD, grad_VD, grad_V = ctx.saved_tensors
        # In place: asked for once more, they would be refused as changed.
        for grad in ctx.saved_tensors:
            if grad is not None:
                grad.mul_(scale)
        return grad_MD, grad_VD, grad_V, None, None, None, None, None, None


class _CompiledCrossEntropy(_LinearCrossEntropy):
    """The same with the passes over a group's logits fused into two."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_M: Tensor,
        product_type: torch.dtype,
        cap: float | None,
        z_weight: float,
        smoothing: float,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        V = len(weight_VD)
        low_MD = hidden_MD.to(product_type)
        low_WD = F.pad(weight_VD.to(product_type), (0, 0, 0, -V % ALIGNED))
        bias_W = None if bias_V is None else F.pad(bias_V, (0, -V % ALIGNED))
        loss, correct = hidden_MD.new_zeros((), dtype=torch.float32), labels_M.new_zeros(())
        grad_V: Tensor | None = None
        if with_gradient:
            grad_MD, grad_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
            grad_V = None if bias_V is None else torch.zeros_like(bias_V)
        groups = max(1, -(-len(labels_M) // ROWS_COMPILED))
        # All alike: the compiler makes a kernel for each shape.
        rows = max(1, -(-len(labels_M) // groups))
        for begin in range(0, len(labels_M), rows):
            here = slice(begin, begin + rows)
            low_RD = low_MD[here]
            part, right, grad_RW = _compiled_scored()(
                low_RD @ low_WD.T, bias_W, labels_M[here], V, cap, z_weight, smoothing
            )
            loss += part
            correct += right
            if with_gradient:
                grad_MD[here] = grad_RW @ low_WD
                grad_VD += (grad_RW.T @ low_RD)[:V]
                if grad_V is not None:
                    grad_V += grad_RW.sum(0, dtype=torch.float32)[:V]
        if with_gradient:
            ctx.save_for_backward(grad_MD, grad_VD, grad_V)
        ctx.mark_non_differentiable(correct)
        return loss, correct


@functools.cache
def _compiled_scored() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # Not a decorator: the compiler takes a second to import, and a processor has no use for it.
    return torch.compile(_scored)


def _scored(
    product_RW: Tensor,
    bias_W: Tensor | None,
    labels_R: Tensor,
    vocabulary: int,
    cap: float | None,
    z_weight: float,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, correct labels, and the loss's gradient by the product: (R, W), W ≥ V aligned."""
    column_W = torch.arange(product_RW.shape[1], device=product_RW.device)
    is_piece_W = column_W < vocabulary
    z_RW = product_RW.float()
    if bias_W is not None:
        z_RW = z_RW + bias_W
    if cap is not None:
        tanh_RW = torch.tanh(z_RW / cap)
        z_RW = cap * tanh_RW
    z_RW = z_RW.masked_fill(~is_piece_W, -torch.inf)
    scored_R = labels_R != IGNORED
    is_label_RW = column_W == labels_R[:, None]
    # In these words the compiler knows a softmax, whose maximum and sum it takes in one pass.
    top_R1 = z_RW.amax(1, keepdim=True)
    sum_R1 = (z_RW - top_R1).exp().sum(1, keepdim=True)
    log_sum_R = (top_R1 + sum_R1.log())[:, 0]
    true_R = z_RW.where(is_label_RW, 0.0).sum(1)
    correct = ((true_R == top_R1[:, 0]) & scored_R).sum()
    target_R = true_R
    if smoothing:
        target_R = torch.lerp(true_R, z_RW.where(is_piece_W, 0.0).sum(1) / vocabulary, smoothing)
    loss = ((log_sum_R - target_R + z_weight * log_sum_R**2) * scored_R).sum()
    r_R = 1 + 2 * z_weight * log_sum_R
    grad_RW = r_R[:, None] * torch.exp(z_RW - log_sum_R[:, None])
    grad_RW = grad_RW - torch.where(is_label_RW, 1 - smoothing, 0.0)
    if smoothing:
        grad_RW = grad_RW - torch.where(is_piece_W, smoothing / vocabulary, 0.0)
    if cap is not None:
        grad_RW = grad_RW * (1 - tanh_RW**2)
    return loss, correct, (grad_RW * scored_R[:, None]).to(product_RW.dtype)
