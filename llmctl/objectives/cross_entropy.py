"""Cross-entropy of a linear layer's softmax over a large vocabulary, without a table of logits.

    loss = Σₘ −log softmax(zₘ)[yₘ] + ζ (log Σᵥ exp zₘᵥ)²,   zₘ = W hₘ + b  or  c tanh(W hₘ / c)

The logits of a batch are the largest tensor of a small model, and every pass over them costs more
than the product that makes them. So a few rows are taken at a time, few enough for the cache:
their logits become their gradient, softmax(z) − onehot(y), in place, and are used up at once. The
gradients are thus made on the way forward, and only scaled on the way back.

The second term, with a weight ζ of 1e-4 or so, keeps the logits from drifting (PaLM's z-loss,
Chowdhery et al. 2022, §5); the cap c keeps them small (Gemma 2, Riviere et al. 2024, §2).

M scored tokens, R of them at a time, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmctl.objectives.base import IGNORED

ROWS_ON_CPU = 256
"""With 8,000 pieces eight megabytes of logits. Fewer rows cost more passes over the gradient of
the weight, more rows leave the cache; measured for 8,000 to 30,000 pieces of width 128 to 512."""
ROWS_ELSEWHERE = 4096
"""On an accelerator the memory saved still counts, and each group of rows costs its launches."""


def linear_cross_entropy(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_M: Tensor,
    *,
    cap: float | None = None,
    z_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The summed loss in nats, and how many labels had the largest logit.

    labels_M: int64 ids; what is IGNORED (-100) is not scored. cap, z_weight: c and ζ above.
    Products are in the type of an enclosing autocast, sums in that of ``hidden_MD``. Can be
    differentiated once.
    """
    device = hidden_MD.device.type
    low = torch.is_autocast_enabled(device)
    product_type = torch.get_autocast_dtype(device) if low else hidden_MD.dtype
    with torch.autocast(device, enabled=False):
        loss, correct = _LinearCrossEntropy.apply(
            hidden_MD,
            weight_VD,
            bias_V,
            labels_M,
            product_type,
            cap,
            z_weight,
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
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        low_MD, low_VD = hidden_MD.to(product_type), weight_VD.to(product_type)
        loss = hidden_MD.new_zeros(())
        correct = labels_M.new_zeros(())
        grad_V: Tensor | None = None
        if with_gradient:
            grad_MD, grad_VD = torch.empty_like(hidden_MD), torch.zeros_like(weight_VD)
            grad_V = None if bias_V is None else torch.zeros_like(bias_V)
        rows = ROWS_ON_CPU if hidden_MD.device.type == "cpu" else ROWS_ELSEWHERE
        for begin in range(0, len(labels_M), rows):
            here = slice(begin, begin + rows)
            scored_R1 = labels_M[here, None] != IGNORED
            label_R1 = labels_M[here, None].where(scored_R1, 0)
            z_RV = (low_MD[here] @ low_VD.T).to(hidden_MD.dtype)
            if bias_V is not None:
                z_RV.add_(bias_V)
            squared_RV: Tensor | None = None
            if cap is not None:
                z_RV.div_(cap).tanh_()
                squared_RV = z_RV.square() if with_gradient else None  # 1 - tanh² is the slope
                z_RV.mul_(cap)
            top_R1, true_R1 = z_RV.amax(1, keepdim=True), z_RV.gather(1, label_R1)
            correct += ((true_R1 == top_R1) & scored_R1).sum()
            z_RV.sub_(top_R1).exp_()
            sum_R1 = z_RV.sum(1, keepdim=True)
            log_sum_R1 = sum_R1.log() + top_R1
            loss += (log_sum_R1 - true_R1 + z_weight * log_sum_R1**2).mul_(scored_R1).sum()
            if not with_gradient:
                continue
            scored_R1 = scored_R1.to(z_RV.dtype)
            z_RV.mul_(scored_R1 * (1 + 2 * z_weight * log_sum_R1) / sum_R1)
            z_RV.scatter_add_(1, label_R1, -scored_R1)
            if squared_RV is not None:
                z_RV.addcmul_(z_RV, squared_RV, value=-1)
            if grad_V is not None:
                grad_V += z_RV.sum(0)
            low_RV = z_RV.to(product_type)
            grad_MD[here] = low_RV @ low_VD
            grad_VD += low_RV.T @ low_MD[here]
        if with_gradient:
            ctx.save_for_backward(grad_MD, grad_VD, grad_V)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_MD, grad_VD, grad_V = ctx.saved_tensors
        grad_V = None if grad_V is None else grad_V * scale
        return grad_MD * scale, grad_VD * scale, grad_V, None, None, None, None, None
