"""Muon against the singular value decomposition and against its formula written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from llmctl.models.spec import Backbone
from llmctl.training.config import TrainingConfig
from llmctl.training.optim.muon import Muon, orthogonalised
from llmctl.training.optim.optimiser import build_optimiser, set_learning_rate


class Layered(Backbone):
    """An embedding and one layer of some parts."""

    kind = "encoder"

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([nn.ModuleDict(parts)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int], scale: float):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * scale
    result = orthogonalised(matrices, torch.float32)
    for before, after in zip(matrices, result, strict=True):
        u, s, vt = torch.linalg.svd(before, full_matrices=False)
        inside = u.T @ after @ vt.T
        values = inside.diagonal()
        assert (inside - torch.diag(values)).abs().max() < 0.02  # the vectors are the same
        large = s > 0.1 * s.max()
        assert values[large].min() > 0.5
        assert values.max() < 1.35


def newton_schulz(g: np.ndarray) -> np.ndarray:
    """Jordan's listing in NumPy."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (np.linalg.norm(g) + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


def test_steps_are_those_of_the_formula_part_by_part():
    torch.manual_seed(0)
    body = Layered({"fused": nn.Linear(8, 16, bias=False), "tall": nn.Linear(4, 12, bias=False)})
    body.blocks[0].fused_rows = {"fused": [8, 4, 4]}  # type: ignore[assignment]
    named = dict(body.blocks.named_parameters())
    expected = {name: weight.detach().double().numpy().copy() for name, weight in named.items()}
    config = TrainingConfig(
        optimiser="muon", muon_learning_rate=0.1, learning_rate=1e-3, weight_decay=0.5,
        muon_momentum=0.9,
    )  # fmt: skip
    optimiser = build_optimiser(body, config)
    assert isinstance(optimiser, Muon)
    momentum = {name: np.zeros_like(value) for name, value in expected.items()}
    for share in (1.0, 0.5):
        set_learning_rate(optimiser, config, share)
        for name, weight in named.items():
            weight.grad = torch.randn_like(weight)
            g = weight.grad.double().numpy()
            m = momentum[name] = 0.9 * momentum[name] + 0.1 * g
            direction = 0.1 * g + 0.9 * m
            cuts = [8, 12] if "0.fused" in name else []
            for place, part in zip(
                np.split(np.arange(len(g)), cuts), np.split(direction, cuts), strict=True
            ):
                rows, columns = part.shape
                rate = 0.1 * share
                expected[name][place] *= 1 - rate * 0.5
                expected[name][place] -= rate * max(1, rows / columns) ** 0.5 * newton_schulz(part)
        optimiser.step()
    for name, weight in named.items():
        np.testing.assert_allclose(weight.detach().numpy(), expected[name], atol=2e-4)


def test_what_is_no_matrix_of_a_block_is_adamws():
    torch.manual_seed(0)
    parts = {"norm": nn.LayerNorm(4, bias=False), "output": nn.Linear(4, 4, bias=False)}
    model = nn.ModuleDict({"body": Layered(parts), "output": nn.Linear(4, 10, bias=False)})
    parameters = dict(model.named_parameters())
    config = TrainingConfig(optimiser="muon", learning_rate=1e-2, embedding_rate=3.0)
    optimiser = build_optimiser(model, config)
    set_learning_rate(optimiser, config, 1.0)
    rates = {
        name: group["lr"]
        for name, parameter in parameters.items()
        for group in optimiser.param_groups
        if any(parameter is member for member in group["params"])
    }
    assert rates == {
        "body.token_embedding.weight": pytest.approx(3e-2),
        "body.blocks.0.norm.weight": 1e-2,
        "body.blocks.0.output.weight": 0.04,
        "output.weight": 1e-2,
    }
    copies = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    # AdamW's first step is the sign of the gradient, times the rate.
    step = parameters["output.weight"] - copies["output.weight"] * (1 - 1e-2 * 0.01)
    torch.testing.assert_close(step.abs(), torch.full_like(step, 1e-2), rtol=1e-3, atol=1e-5)
    assert set(optimiser.state[parameters["body.blocks.0.output.weight"]]) == {"momentum"}
