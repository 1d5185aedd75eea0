"""Matrix products in eight bits against those in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llmctl.errors import UsageError
from llmctl.models.spec import Backbone
from llmctl.training.optim.float8 import Float8Linear, use_float8
from llmctl.training.precision import choose_precision


class Layered(Backbone):
    kind = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(64, 32), nn.Linear(30, 7))])
        self.output = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.output(x)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs).norm() / theirs.norm())


def test_products_and_gradients_are_near_those_in_fp32():
    torch.manual_seed(0)
    exact = nn.Linear(64, 32)
    low = Float8Linear.of(exact)
    x = torch.randn(4, 16, 64)
    target = torch.randn(4, 16, 32)
    found = []
    for layer in (exact, low):
        exact.zero_grad()
        inputs = x.clone().requires_grad_()
        out = layer(inputs)
        (out.float() * target).sum().backward()
        assert inputs.grad is not None
        assert exact.weight.grad is not None
        assert exact.bias.grad is not None
        gradients = (exact.weight.grad.clone(), exact.bias.grad.clone())
        found.append((out.detach(), inputs.grad, *gradients))
    # Three bits of mantissa round by a sixteenth at most, two by an eighth.
    for ours, theirs, limit in zip(found[1], found[0], (0.05, 0.1, 0.1, 0.02), strict=True):
        assert 0 < relative(ours, theirs) < limit


def test_blocks_alone_are_changed_where_their_widths_allow():
    model = Layered()
    names = set(model.state_dict())
    weight = model.blocks[0][0].weight  # type: ignore[index]
    use_float8(model)
    aligned, other = model.blocks[0].children()
    assert isinstance(aligned, Float8Linear)
    assert aligned.weight is weight
    assert type(other) is type(model.output) is nn.Linear
    assert set(model.state_dict()) == names


def test_a_processor_has_no_such_units():
    with pytest.raises(UsageError, match="fp8"):
        choose_precision("fp8", torch.device("cpu"))
