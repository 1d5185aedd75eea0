"""The fused cross-entropy equals PyTorch's two steps, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.models.heads import cross_entropy
from llmctl.models.heads.cross_entropy import IGNORED, linear_cross_entropy


@pytest.fixture(autouse=True)
def however_few_the_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", 0)


def make(rows: int, width: int, pieces: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    values = torch.randn(rows, width), torch.randn(pieces, width), torch.randn(pieces)
    labels = torch.randint(pieces, (rows,))
    labels[2::5] = IGNORED
    return [*(value.to(dtype).requires_grad_() for value in values), labels]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias)
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return loss, (logits.argmax(-1) == labels).sum()


@pytest.mark.parametrize("rows", [1, 511, 512, 513, 1200])
def test_loss_hits_and_gradients_equal_pytorchs(rows: int):
    arguments = make(rows, 16, 50)
    results = []
    for function in (linear_cross_entropy, plain):
        loss, hits = function(*arguments)
        gradients = torch.autograd.grad(loss / rows, arguments[:3])
        results.append((loss.detach(), hits, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cap", "z_weight", "smoothing"), [(None, 0.0, 0.0), (None, 0.0, 0.2), (3.0, 0.1, 0.1)]
)
def test_gradients_equal_finite_differences(
    monkeypatch: pytest.MonkeyPatch, cap: float | None, z_weight: float, smoothing: float
):
    monkeypatch.setattr(cross_entropy, "ROWS_ON_CPU", 3)
    *floats, labels = make(7, 4, 6, torch.float64)

    def loss() -> Tensor:
        return linear_cross_entropy(
            *floats, labels, cap=cap, z_weight=z_weight, smoothing=smoothing
        )[0]

    gradients = torch.autograd.grad(loss(), floats)
    for value, gradient in zip(floats, gradients, strict=True):
        flat = value.detach().view(-1)
        for i, slope in enumerate(gradient.view(-1)):
            ends = []
            for shift in (1e-6, -2e-6):
                flat[i] += shift
                with torch.no_grad():
                    ends.append(loss())
            flat[i] += 1e-6
            torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)


def test_a_second_way_back_is_refused():
    *floats, labels = make(7, 4, 6)
    loss, _ = linear_cross_entropy(*floats, labels)
    torch.autograd.grad(loss, floats, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, floats)


def test_without_gradients_it_says_the_same():
    arguments = make(700, 16, 50)
    loss, hits = linear_cross_entropy(*arguments)
    with torch.no_grad():
        bare_loss, bare_hits = linear_cross_entropy(*arguments)
    assert not bare_loss.requires_grad
    assert torch.equal(loss.detach(), bare_loss)
    assert torch.equal(hits, bare_hits)


def test_logits_far_apart_neither_overflow_nor_vanish():
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]])
    loss, hits = linear_cross_entropy(hidden, weight, torch.zeros(2), torch.tensor([1]))
    assert loss.item() == 2000.0
    assert hits.item() == 0


@pytest.mark.parametrize("hidden_type", [torch.float32, torch.bfloat16])
def test_under_autocast_products_are_bf16_and_sums_are_not(hidden_type: torch.dtype):
    """Against fp32: bf16 has 8 bits, so a product is right to about 2⁻⁸ of its terms' size. What
    comes from a layer before may be in bf16 itself."""
    hidden, *others = make(1200, 64, 500)
    hidden = hidden.detach().to(hidden_type)
    arguments = [hidden.requires_grad_(), *others]
    wide = [hidden.detach().float().requires_grad_(), *others]
    exact = torch.autograd.grad(plain(*wide)[0], wide[:3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_cross_entropy(*arguments)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain(*wide)[0], rtol=1e-3, atol=0.0)
    found = torch.autograd.grad(loss, arguments[:3])
    assert found[0].dtype == hidden_type
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(("cap", "z_weight"), [(None, 0.02), (3.0, 0.0), (3.0, 0.02)])
@pytest.mark.parametrize("biased", [True, False])
def test_capped_logits_and_their_drift(cap: float | None, z_weight: float, biased: bool):
    hidden, weight, bias, labels = make(700, 16, 50)
    floats = [hidden, weight, *([bias] if biased else [])]
    given = bias if biased else None
    ours, _ = linear_cross_entropy(hidden, weight, given, labels, cap=cap, z_weight=z_weight)
    logits = F.linear(hidden, weight, given)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    theirs = F.cross_entropy(logits, labels, reduction="sum")
    theirs = theirs + z_weight * logits.logsumexp(-1)[labels != IGNORED].square().sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for mine, other in zip(
        torch.autograd.grad(ours, floats), torch.autograd.grad(theirs, floats), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        bare, _ = linear_cross_entropy(hidden, weight, given, labels, cap=cap, z_weight=z_weight)
    torch.testing.assert_close(bare, ours.detach())


def test_smoothed_labels_are_pytorchs():
    hidden, weight, bias, labels = make(700, 16, 50)
    ours, _ = linear_cross_entropy(hidden, weight, bias, labels, smoothing=0.1)
    logits = F.linear(hidden, weight, bias)
    theirs = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for mine, other in zip(
        torch.autograd.grad(ours, [hidden, weight, bias]),
        torch.autograd.grad(theirs, [hidden, weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
