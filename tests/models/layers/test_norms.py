"""Norms, rotary positions and activations equal their formulas, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.models.layers.feed_forward import squared_relu
from llmctl.models.layers.norms import rms_norm
from llmctl.models.layers.rotary import rotary_table, rotate

COS, SIN = rotary_table(5, 8, 100.0)


def turned(x: Tensor) -> Tensor:
    """Pairs as complex numbers, times e^(i · angle)."""
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    result = pairs * torch.complex(COS.double(), SIN.double())
    return torch.cat((result.real, result.imag), dim=-1).to(x.dtype)


PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rms_norm": (
        lambda x: rms_norm(x, 1e-3),
        lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt(),
    ),
    "rotate": (lambda x: rotate(x, COS, SIN), turned),
    "squared_relu": (squared_relu, lambda x: F.relu(x) ** 2),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("strided", [False, True])
def test_values_and_gradients_are_those_of_the_formula(name: str, strided: bool):
    torch.manual_seed(0)
    ours, formula = PAIRS[name]
    # Heads come as a transposed view of a projection's result.
    x = torch.randn(2, 5, 3, 8).transpose(1, 2) if strided else torch.randn(2, 3, 5, 8)
    x.requires_grad_()
    weights = torch.randn(2, 3, 5, 8)
    results = []
    for function in (ours, formula):
        y = function(x)
        (gradient,) = torch.autograd.grad((y * weights).sum(), x)
        results.append((y.detach(), gradient))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["rms_norm", "squared_relu"])
def test_gradients_equal_finite_differences(name: str):
    torch.manual_seed(0)
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PAIRS[name][0], x)


def test_bf16_stays_bf16():
    x = torch.randn(2, 3, 5, 8, dtype=torch.bfloat16)
    for ours, formula in PAIRS.values():
        y = ours(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), formula(x.float()), rtol=2e-2, atol=2e-2)
