"""Attention in a window: that of all pairs under the window's mask, at the window's cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llmctl.models.layers.feed_forward import ACTIVATIONS, gated
from llmctl.models.layers.local_attention import (
    LocalWindow,
    in_blocks,
    local_attention,
    neighbourhoods,
)
from llmctl.models.layers.rotary import rotary_table, rotate, rotate_fused

CPU = torch.device("cpu")


def by_formula(
    q: NDArray[np.float64],
    k: NDArray[np.float64],
    v: NDArray[np.float64],
    allowed: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """softmax(Q Kᵀ / √d + mask) V of (B, T, N, H), with everything written out."""
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(allowed[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnh->btnh", weights, v)


def allowed_pairs(T: int, radius: int, ids_BT: NDArray[np.int64]) -> NDArray[np.bool_]:
    places = np.arange(T)
    near = np.abs(places[:, None] - places) <= radius
    return near & (ids_BT[:, :, None] == ids_BT[:, None, :])


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(1, 330),
    radius=st.integers(1, 90),
    lengths=st.lists(st.integers(1, 120), max_size=6),
    packed=st.booleans(),
)
def test_it_is_the_masked_attention_of_all_pairs(
    T: int, radius: int, lengths: list[int], packed: bool
):
    """For rows of any length, windows of any size, and texts anywhere in the rows."""
    torch.manual_seed(T)
    q, k, v = torch.randn(3, 2, T, 2, 4)
    ids = np.zeros((2, T), dtype=np.int64)
    ids[1] = np.searchsorted(np.cumsum(lengths), np.arange(T), side="right")
    sequence_ids = torch.from_numpy(ids) if packed else None
    window = LocalWindow.of(sequence_ids, (2, T), radius, CPU)
    mixed = local_attention(q, k, v, window)
    allowed = allowed_pairs(T, radius, ids if packed else np.zeros_like(ids))
    expected = by_formula(*(part.double().numpy() for part in (q, k, v)), allowed)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_masked_attention(dtype: torch.dtype):
    """bf16 keeps eight bits: 2 % of the whole."""
    T, radius = 300, 32
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, T, 2, 8)
    ids = torch.arange(T).expand(2, T) // 130
    gradients = []
    for window in (
        LocalWindow.of(ids, (2, T), radius, CPU),
        LocalWindow(additive(allowed_pairs(T, radius, ids.numpy())), 0),
    ):
        leaf = qkv.to(dtype).detach().requires_grad_()
        mixed = local_attention(*leaf.unbind(0), window)
        mixed.float().square().sum().backward()
        assert leaf.grad is not None
        assert mixed.dtype == leaf.grad.dtype == dtype
        gradients.append((mixed.detach().float(), leaf.grad.float()))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for blocks, pairs in zip(*gradients, strict=True):
        assert (blocks - pairs).norm() < tolerance * pairs.norm()


def additive(allowed: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.where(allowed, 0.0, -np.inf)).float()[:, None]


def test_a_longer_row_costs_in_proportion():
    """Operations counted by PyTorch: twice as many for twice the tokens, where all pairs are four
    times as many; and no more than what three blocks of keys cost."""

    def operations(T: int) -> int:
        q, k, v = torch.randn(3, 1, T, 2, 8, device="meta")
        window = LocalWindow.of(None, (1, T), 64, torch.device("meta"))
        with FlopCounterMode(display=False) as counter:
            local_attention(q, k, v, window)
        return counter.get_total_flops()

    assert operations(4096) == 2 * operations(2048) == 4 * operations(1024)
    pairs = 4096 * 3 * 64
    assert operations(4096) == 2 * 2 * pairs * 2 * 8  # two products, two operations each


def test_rows_cut_into_blocks_and_their_neighbours():
    rows = torch.tensor([[1, 2, 3, 4, 5]])
    blocks = in_blocks(rows, 2, beyond=-1)
    assert blocks.tolist() == [[[1, 2], [3, 4], [5, -1]]]
    assert neighbourhoods(blocks, beyond=-2).tolist() == [
        [[-2, -2, 1, 2, 3, 4], [1, 2, 3, 4, 5, -1], [3, 4, 5, -1, -2, -2]]
    ]


def test_dropout_drops_weights_in_blocks_too():
    torch.manual_seed(0)
    q = torch.zeros(1, 300, 1, 4)
    mixed = local_attention(q, q, torch.ones_like(q), LocalWindow.of(None, (1, 300), 32, CPU), 0.5)
    assert mixed.std() > 0.05
    assert mixed.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_the_gradient_of_a_gate_is_the_formula_s(activation: str):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    expected = ACTIVATIONS[activation](x[..., :4]) * x[..., 4:]
    assert torch.equal(gated(x, activation), expected)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda x: gated(x, activation), x)  # type: ignore[arg-type]


def test_queries_and_keys_turned_together_are_those_turned_alone():
    torch.manual_seed(0)
    cos, sin = (table.double()[:, None] for table in rotary_table(5, 6, 100.0))
    x = torch.randn(2, 5, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    q, k, v = rotate_fused(x, cos, sin)
    assert torch.equal(q, rotate(x[:, :, 0], cos, sin))
    assert torch.equal(k, rotate(x[:, :, 1], cos, sin))
    assert torch.equal(v, x[:, :, 2])
    assert torch.autograd.gradcheck(lambda x: rotate_fused(x, cos, sin), x)
