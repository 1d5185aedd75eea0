"""int8 layers: exact sums on every kind of processor, and as fast as they are for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from llmctl.inference import quantised
from llmctl.inference.quantised import Int8Linear, OneRowInt8Linear
from llmctl.inference.weights import prepare
from llmctl.models.gpt import Gpt, GptConfig
from llmctl.models.heads.causal_lm import CausalLM

LAYERS = [
    Int8Linear,
    pytest.param(
        OneRowInt8Linear,
        marks=pytest.mark.skipif(not OneRowInt8Linear.is_available(), reason="FBGEMM is x86's"),
    ),
]
Layer = type[Int8Linear | OneRowInt8Linear]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_its_formula(kind: Layer):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(30, 20), torch.randn(30), 3 * torch.randn(5, 20)
    largest = quantised.largest_in_rows(kind)
    scale_O, scale_M = weight.abs().amax(1) / 127, x.abs().amax(1) / largest
    weight_8 = (weight / scale_O[:, None]).round().double()
    # Halves, which rounding to even and cutting off would treat unlike, don't come in random rows.
    x_8 = (x / scale_M[:, None]).round().double()
    expected = (x_8 @ weight_8.T) * scale_M[:, None] * scale_O + bias
    layer = kind(weight, bias)
    for found in (layer(x), torch.cat([layer(row[None, None])[0] for row in x])):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_zeros_stay_zero(kind: Layer):
    layer = kind(torch.randn(8, 4), None)
    for rows in (1, 3):
        assert not layer(torch.zeros(rows, 4)).any()
    assert not kind(torch.zeros(8, 4), None)(torch.ones(2, 4)).any()


def seconds(make: str) -> str:
    return f"min(timeit.repeat({make}, number=20, repeat=5))"


SCRIPT = f"""
import timeit, torch
from torch.nn import functional as F
from llmctl.inference.quantised import Int8Linear, largest_in_rows
torch.set_num_threads(1)
torch.manual_seed(0)
print(largest_in_rows(Int8Linear))
for rows in (1, 8):
    # Of one sign: the sums are as large as they come.
    weight, x = 1 + torch.rand(512, 512), 1 + torch.rand(rows, 512)
    layer = Int8Linear(weight, None)
    for sign in (1, -1):
        exact = F.linear(sign * x, weight)
        print(float((layer(sign * x) - exact).norm() / exact.norm()))
    print({seconds("lambda: layer(x)")} / {seconds("lambda: F.linear(x, weight)")})
"""


@pytest.mark.parametrize("kind", ["DEFAULT", "AVX512_CORE_VNNI", "AVX2"])
def test_sums_are_exact_and_fast_whatever_the_processor(kind: str):
    """oneDNN is told to do with fewer instructions; where there are none of x86 it does not mind.

    Signed rows take hundreds of times as long without AMX, and sums overflow without VNNI.
    """
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": kind},
    )  # fmt: skip
    largest, *lines = map(float, result.stdout.split())
    assert largest in (127, 63)
    for above, below, slower in (lines[:3], lines[3:]):
        assert max(above, below) < 1e-3
        assert slower < 20


@pytest.mark.parametrize("kind", LAYERS)
def test_what_overflows_is_found_out(kind: Layer):
    """The largest rows and weights, where the sums of a pair are 2 · 255 · 127."""
    weight = torch.ones(64, 64)
    exact = F.linear(torch.ones(3, 64), weight)
    torch.testing.assert_close(kind(weight, None)(torch.ones(3, 64)), exact)


@pytest.mark.parametrize("rows", [1, 3])
def test_one_row_is_for_writing_one_text(rows: int):
    """The same model either way, and the process's choice of a library is left as it was."""
    torch.manual_seed(0)
    config = GptConfig(vocab_size=11, hidden_size=16, num_layers=1, num_heads=2, max_positions=8)
    model = CausalLM(Gpt(config)).eval()
    ids = torch.randint(11, (rows, 5))
    engine = torch.backends.quantized.engine
    with torch.no_grad():
        exact = model.logits(model.body(ids))
        head = prepare(model, "int8", rows=rows)
        assert head is not None
        found = head(model.body(ids))
    assert torch.backends.quantized.engine == engine
    kinds = {type(module) for module in model.modules()}
    assert (OneRowInt8Linear in kinds) == (rows == 1 and OneRowInt8Linear.is_available())
    assert (found - exact).norm() < 0.03 * exact.norm()
