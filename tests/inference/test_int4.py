"""int4 layers: the numbers of their formula, and no further off than half a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.inference.int4 import Int4Linear, quantise_groups
from llmctl.inference.weights import prepare
from llmctl.models.gpt import Gpt, GptConfig
from llmctl.models.heads.causal_lm import CausalLM


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(32, 64, 32), (30, 50, 32), (7, 128, 64)])
def test_a_layer_is_its_formula(outputs: int, inputs: int, group: int):
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs) + 0.5, torch.randn(outputs)
    layer = Int4Linear(weight, bias, group=group)
    padded = torch.nn.functional.pad(weight, (0, -inputs % group))
    number, scale, offset = (part.double() for part in quantise_groups(padded, group))
    grouped = number.unflatten(1, (-1, group))
    used = ((grouped - 8) * scale[..., None] + offset[..., None]).flatten(1)[:, :inputs]
    for x in (torch.randn(inputs), torch.randn(2, 3, inputs)):
        expected = x.bfloat16().double() @ used.T + bias
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-2, atol=0.1)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_a_weight_is_off_by_half_a_step(seed: int, size: float, middle: float):
    weight = size * (torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) + middle)
    number, scale, offset = (part.float() for part in quantise_groups(weight, 32))
    assert number.min() >= 0
    assert number.max() <= 15
    back = (number.unflatten(1, (-1, 32)) - 8) * scale[..., None] + offset[..., None]
    # bf16 holds scale and offset to 2^-8 of themselves.
    room = scale * (0.5 + 8 * 2**-8) + offset.abs() * 2**-8
    assert ((back - weight.unflatten(1, (-1, 32))).abs() <= room[..., None] * 1.01).all()


def test_a_model_writes_with_int4():
    torch.manual_seed(0)
    model = CausalLM(Gpt(GptConfig(vocab_size=50, num_layers=2, hidden_size=64, max_positions=32)))
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model.eval().logits(model.body(ids))
        head = prepare(model, "int4", rows=1)
        assert head is not None
        after = head(model.body(ids))
    assert 0 < (after - before).abs().mean() < 0.2 * before.abs().mean()
