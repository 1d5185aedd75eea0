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

M scored tokens, R of them at a time, L of those in the cache, D width, V vocabulary, W the
vocabulary filled up.
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

IGNORED = -100
"""Label of what is not scored: PyTorch's and Hugging Face's."""

ROWS_ON_CPU = 512
"""With 8,000 pieces sixteen megabytes of logits. Fewer rows make slower products, more rows leave
the cache; measured for 8,000 to 50,000 pieces of width 256 to 768."""
FEW_LOGITS = 1 << 21
"""That many are taken at a time with any number of rows: characters make small tables."""
CACHED_LOGITS = 1 << 18
"""For each thread: a megabyte. Products in bf16 become that many logits in fp32 at a time, and stay
in the cache for all that is done to them: 0.85 to 0.95 of the time of doing it to 512 rows."""
ROWS_ELSEWHERE = 4096
"""On an accelerator the memory saved still counts, and each group of rows costs its launches."""
ROWS_COMPILED = 8192
"""Compiled, nothing of a group's size is kept but its product and that product's gradient."""
MATRIX_MULTIPLE = 64
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
    """Rows of logits that are made at a time, in fp32; with a cap two such tables are there."""
    rows = ROWS_ON_CPU if device.type == "cpu" else ROWS_ELSEWHERE
    return max(rows, FEW_LOGITS // vocab_size)


def rows_in_cache(device: torch.device, vocab_size: int) -> int:
    """How many rows of logits are turned into their gradients at a time where they are not in
    fp32."""
    if device.type != "cpu":
        return rows_at_a_time(device, vocab_size)
    return max(1, CACHED_LOGITS * torch.get_num_threads() // vocab_size)


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
    Products are in the type of an enclosing autocast, sums in fp32 at the least. Can be
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
        wide = torch.promote_types(hidden_MD.dtype, torch.float32)
        loss = hidden_MD.new_zeros((), dtype=wide)
        correct = labels_M.new_zeros(())
        grad_V: Tensor | None = None
        if with_gradient:
            grad_MD, grad_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
            grad_V = None if bias_V is None else torch.zeros_like(bias_V)
        rows = rows_at_a_time(hidden_MD.device, len(weight_VD))
        few = rows if same_type else rows_in_cache(hidden_MD.device, len(weight_VD))
        z_MV = low_MD.new_empty(min(rows, len(labels_M)), len(weight_VD))
        scale_M1 = hidden_MD.new_empty(len(z_MV), 1, dtype=wide)
        for begin in range(0, len(labels_M), rows):
            rows_slice = slice(begin, begin + rows)
            labels_R = labels_M[rows_slice]
            z_RV, scale_R1 = z_MV[: len(labels_R)], scale_M1[: len(labels_R)]
            torch.mm(low_MD[rows_slice], low_VD.T, out=z_RV)
            for first in range(0, len(labels_R), few):
                part = slice(first, first + few)
                lost, hits = _score(
                    z_RV[part], bias_V, labels_R[part], cap, z_weight, smoothing,
                    grad_V, scale_R1[part] if with_gradient else None,
                )  # fmt: skip
                loss += lost
                correct += hits
            if not with_gradient:
                continue
            grad_RV = z_RV
            if same_type:  # added up by the product itself: no pass over V × D for each few rows
                torch.mm(grad_RV, low_VD, out=grad_MD[rows_slice]).mul_(scale_R1)
                grad_VD.addmm_(grad_RV.T, low_MD[rows_slice] * scale_R1)
            else:
                grad_MD[rows_slice] = (grad_RV @ low_VD).to(wide).mul_(scale_R1)
                grad_VD += grad_RV.T @ (hidden_MD[rows_slice] * scale_R1).to(product_type)
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


def _score(
    z_LV: Tensor,
    bias_V: Tensor | None,
    labels_L: Tensor,
    cap: float | None,
    z_weight: float,
    smoothing: float,
    grad_V: Tensor | None,
    scale_L1: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss of some rows, and how many labels had the largest logit.

    z_LV: products; with ``scale_L1``, the loss's gradient by them comes in their place, but for a
    factor for each row, and that is written there. grad_V: where the bias's gradient is added.
    """
    low_LV, z_LV = z_LV, z_LV.to(torch.promote_types(z_LV.dtype, torch.float32))
    scored_L1 = labels_L[:, None] != IGNORED
    label_L1 = labels_L[:, None].where(scored_L1, 0)
    if bias_V is not None:
        z_LV.add_(bias_V)
    slope_LV: Tensor | None = None
    if cap is not None:
        z_LV.div_(cap).tanh_()
        slope_LV = z_LV * z_LV
        z_LV.mul_(cap)
    top_L1, true_L1 = z_LV.amax(1, keepdim=True), z_LV.gather(1, label_L1)
    correct = ((true_L1 == top_L1) & scored_L1).sum()
    target_L1 = true_L1
    if smoothing:
        target_L1 = torch.lerp(true_L1, z_LV.mean(1, keepdim=True), smoothing)
    sum_L1 = z_LV.sub_(top_L1).exp_().sum(1, keepdim=True)
    log_sum_L1 = sum_L1.log() + top_L1
    loss = (log_sum_L1 - target_L1 + z_weight * log_sum_L1**2).mul_(scored_L1).sum()
    if scale_L1 is None:
        return loss, correct
    # With r = 1 + 2 ζ log Σ exp z the gradient of a row is r softmax(z) - target. What scales whole
    # rows is left to the other side of each product, which is narrower.
    r_L1 = 1 + 2 * z_weight * log_sum_L1
    unit_L1 = sum_L1 / r_L1
    grad_LV = z_LV.scatter_add_(1, label_L1, (smoothing - 1) * unit_L1)
    if smoothing:
        grad_LV.sub_(unit_L1 * (smoothing / z_LV.shape[1]))
    if slope_LV is not None:
        grad_LV.addcmul_(grad_LV, slope_LV, value=-1)  # tanh' = 1 - tanh²
    torch.div(scored_L1 * r_L1, sum_L1, out=scale_L1)
    if grad_V is not None:
        grad_V += (scale_L1.T @ grad_LV)[0]
    if low_LV.dtype != grad_LV.dtype:
        low_LV.copy_(grad_LV)
    return loss, correct


class _CompiledCrossEntropy(_LinearCrossEntropy):
    """Cross-entropy with the passes over a group's logits fused into two."""

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
        low_WD = F.pad(weight_VD.to(product_type), (0, 0, 0, -V % MATRIX_MULTIPLE))
        bias_W = None if bias_V is None else F.pad(bias_V, (0, -V % MATRIX_MULTIPLE))
        loss, correct = hidden_MD.new_zeros((), dtype=torch.float32), labels_M.new_zeros(())
        grad_V: Tensor | None = None
        if with_gradient:
            grad_MD, grad_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
            grad_V = None if bias_V is None else torch.zeros_like(bias_V)
        groups = max(1, -(-len(labels_M) // ROWS_COMPILED))
        # All alike: the compiler makes a kernel for each shape.
        rows = max(1, -(-len(labels_M) // groups))
        for begin in range(0, len(labels_M), rows):
            rows_slice = slice(begin, begin + rows)
            low_RD = low_MD[rows_slice]
            part, right, grad_RW = _compiled_scored()(
                low_RD @ low_WD.T, bias_W, labels_M[rows_slice], V, cap, z_weight, smoothing
            )
            loss += part
            correct += right
            if with_gradient:
                grad_MD[rows_slice] = grad_RW @ low_WD
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
