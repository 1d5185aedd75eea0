"""The cache beside rows that are simply kept, whatever is selected from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmctl.models.layers.attention import attention
from llmctl.models.layers.cache import SHORT_PAST, KeyValueCache

N, K, H = 4, 2, 8


class Kept:
    """A row: its keys and values (K, H) slot by slot, and where it starts."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def copy(self) -> Kept:
        other = Kept(self.start)
        other.keys, other.values = [*self.keys], [*self.values]
        return other

    def attended(self, q_NH: Tensor) -> Tensor:
        """softmax(Q Kᵀ / √d) V over the row's own past."""
        k_KSH, v_KSH = (torch.stack(part[self.start :], 1) for part in (self.keys, self.values))
        mixed = []
        for head, q_H in enumerate(q_NH):
            own = head // (N // K)
            weights_S = (k_KSH[own] @ q_H / math.sqrt(H)).softmax(0)
            mixed.append(weights_S @ v_KSH[own])
        return torch.stack(mixed)


def read(
    cache: KeyValueCache, rows: list[Kept], tokens: int, generator: np.random.Generator
) -> None:
    """Let every row read tokens, and compare what the last of them attends to."""

    def draw(heads: int) -> Tensor:
        return torch.from_numpy(generator.normal(size=(len(rows), heads, tokens, H))).float()

    q_BNTH, k_BKTH, v_BKTH = draw(N), draw(K), draw(K)
    causal = cache.length == 0 and cache.starts_B is None
    mask = None if causal else cache.mask(tokens)
    mixed = attention(*cache.extend(0, q_BNTH, k_BKTH, v_BKTH), mask=mask, causal=causal)
    cache.advance(tokens)
    found_BTNH = mixed.transpose(1, 2).reshape(len(rows), tokens, N, H)
    for row, one in enumerate(rows):
        one.keys += k_BKTH[row].unbind(1)
        one.values += v_BKTH[row].unbind(1)
        expected_NH = one.attended(q_BNTH[row, :, -1])
        torch.testing.assert_close(found_BTNH[row, -1], expected_NH, rtol=1e-4, atol=1e-5)


def select(cache: KeyValueCache, rows: list[Kept], chosen: list[int]) -> list[Kept]:
    cache.select(torch.tensor(chosen))
    assert cache.rows == len(chosen)
    return [rows[row].copy() for row in chosen]


@st.composite
def selections(draw: st.DrawFn, rows: int, each: int) -> list[int]:
    """Rows to go on with: any, or as searches choose them, some families gone."""
    kind = draw(st.sampled_from(["any", "branch", "families"]))
    if kind == "any":
        return draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=8))
    kept = sorted(draw(st.sets(st.integers(0, rows // each - 1), min_size=1)))
    if kind == "branch":
        return [family * each for family in kept for _ in range(draw(st.just(3)))]
    member = st.integers(0, each - 1)
    return [family * each + draw(member) for family in kept for _ in range(each)]


@given(data=st.data(), prompts=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_rows_attend_to_their_own_past(data: st.DataObject, prompts: list[int]):
    generator = np.random.default_rng(0)
    longest = max(prompts)
    starts = [longest - length for length in prompts]
    rows = [Kept(start) for start in starts]
    cache = KeyValueCache.allocate(
        num_layers=1, rows=len(rows), num_heads=K, capacity=longest + 8, head_size=H,
        like=torch.zeros(()), starts_B=torch.tensor(starts) if any(starts) else None,
    )  # fmt: skip
    read(cache, rows, longest, generator)
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            rows = select(cache, rows, data.draw(selections(len(rows), cache.beams_per_group)))
        if cache.length < cache.capacity:
            read(cache, rows, 1, generator)


@pytest.mark.parametrize(("past", "each"), [(SHORT_PAST, 3), (SHORT_PAST + 1, 1)])
def test_rows_of_a_short_past_become_a_family(past: int, each: int):
    generator = np.random.default_rng(1)
    rows = [Kept(0), Kept(0)]
    cache = KeyValueCache.allocate(
        num_layers=1, rows=2, num_heads=K, capacity=past + 4, head_size=H, like=torch.zeros(())
    )
    read(cache, rows, past, generator)
    rows = select(cache, rows, [0, 0, 0, 1, 1, 1])
    assert cache.beams_per_group == each
    read(cache, rows, 1, generator)
    before = cache.keys_LFKSEH.data_ptr()
    rows = select(cache, rows, [1, 1, 0, 5, 4, 3])
    assert (cache.keys_LFKSEH.data_ptr() == before) == (each > 1)  # only the mask has changed
    read(cache, rows, 1, generator)
    rows = select(cache, rows, [3, 4, 5])
    assert cache.beams_per_group == each
    read(cache, rows, 1, generator)
