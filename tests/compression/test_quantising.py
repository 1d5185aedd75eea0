"""Weights in whole numbers: the papers' formulas in NumPy, and folders in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.compression.awq import scale_block
from llmctl.compression.calibration import InputStatistics, linears, through_layers
from llmctl.compression.config import CompressConfig
from llmctl.compression.gptq import DAMPING, gptq_matrix
from llmctl.compression.quantising import quantise
from llmctl.compression.rounding import Grid, round_matrix
from llmctl.compression.smaller import make_smaller, write_smaller
from llmctl.errors import InputError, UsageError
from llmctl.formats.huggingface.packed import pack, unpack
from llmctl.formats.open import open_folder
from llmctl.inference.weights import prepare
from tests.foreign_models import save_model
from tests.small_decoders import make_model

GRIDS = [Grid(4, 32), Grid(4, 32, symmetric=True), Grid(8, 64)]


def some_weights(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (8, 64), and inputs (300, 64) that depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(64, 64, generator=generator) / 8 + torch.eye(64)
    return torch.randn(8, 64, generator=generator), torch.randn(
        300, 64, generator=generator
    ) @ mixed


@pytest.mark.parametrize("grid", GRIDS)
def test_rounding_is_off_by_half_a_step(grid: Grid):
    weight, _ = some_weights()
    matrix = round_matrix(weight, grid)
    step = matrix.scale_OG.repeat_interleave(grid.group, 1)
    assert ((matrix.dequantised() - weight).abs() <= 0.501 * step).all()
    assert torch.equal(matrix.scale_OG, matrix.scale_OG.bfloat16().float())
    assert matrix.numbers_OI.min() >= grid.least
    assert matrix.numbers_OI.max() <= grid.most
    assert not grid.symmetric or not matrix.zero_OG.any()


def by_the_paper(weight: np.ndarray, hessian: np.ndarray, grid: Grid) -> np.ndarray:
    """Optimal brain quantisation in a fixed order: equation 2, each inverse taken anew."""
    weight, inputs = weight.astype(np.float64).copy(), len(hessian)
    hessian = hessian + DAMPING * np.diag(hessian).mean() * np.eye(inputs)
    kept = np.empty_like(weight)
    for q in range(inputs):
        if q % grid.group == 0:
            found = grid.of_group(torch.from_numpy(weight[:, q : q + grid.group]).float())
            scale, zero = (part.double().numpy() for part in found)
        number = np.clip(np.round(weight[:, q] / scale + zero), grid.least, grid.most)
        kept[:, q] = (number - zero) * scale
        left = np.linalg.inv(hessian[q:, q:])
        weight[:, q:] -= np.outer((weight[:, q] - kept[:, q]) / left[0, 0], left[0])
    return kept


@pytest.mark.parametrize("grid", GRIDS)
def test_gptq_is_the_papers_formula(grid: Grid):
    weight, inputs = some_weights()
    hessian = inputs.T @ inputs
    matrix = gptq_matrix(weight, hessian, grid)
    expected = by_the_paper(weight.numpy(), hessian.double().numpy(), grid)
    same = np.isclose(matrix.dequantised().numpy(), expected, rtol=1e-4, atol=1e-5)
    # In fp32 a weight midway between two points may fall to either, and moves those behind it.
    assert same.mean() > 0.97
    rounded = round_matrix(weight, grid).dequantised()

    def error(kept: torch.Tensor) -> float:
        return float(((kept - weight) @ inputs.T).norm())

    assert error(matrix.dequantised()) < 0.9 * error(rounded)


def test_inputs_that_are_always_zero():
    weight, inputs = some_weights()
    inputs[:, 5] = 0
    kept = gptq_matrix(weight, inputs.T @ inputs, Grid(8, 32)).dequantised()
    assert not kept[:, 5].any()
    assert torch.isfinite(kept).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_those_of_compressed_tensors(bits: int):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    least = -(1 << (bits - 1))
    numbers = torch.randint(least, -least, (5, 44), generator=torch.Generator().manual_seed(1))
    packed = pack(numbers, bits)
    assert torch.equal(packed, helpers.pack_to_int32(numbers.to(torch.int8), bits))
    assert torch.equal(unpack(packed, bits, 44).long(), numbers)


def test_scaling_changes_nothing_and_helps_rounding():
    model = make_model("llama", hidden_size=64, intermediate_size=96, num_kv_heads=1)
    block, grid = model.body.layers()[0], Grid(4, 32)
    ids = torch.arange(16).view(2, 8) % 18
    statistics: dict[str, InputStatistics] = {}
    with torch.no_grad():
        block.norm_1.weight[3] = 30.0  # an input that matters
        before = model.body(ids)
        through_layers(
            model.body, ids, lambda n, b, found: statistics.update(found) if not n else None
        )
        plain = linears(block)["attention.query_key_value"].weight.clone()
        counted = statistics["attention.query_key_value"]
        scale_block(block, statistics, grid)
        torch.testing.assert_close(model.body(ids), before, rtol=1e-4, atol=1e-4)
        scaled = linears(block)["attention.query_key_value"].weight
        scale = scaled[0] / plain[0]

    def error(kept: torch.Tensor) -> float:
        difference = (kept - plain).double()
        return float((difference @ counted.product_II.double() * difference).sum())

    rounded = round_matrix(plain, grid).dequantised()
    assert error(round_matrix(scaled, grid).dequantised() / scale) < 0.9 * error(rounded)


def test_statistics_are_those_of_the_inputs():
    model = make_model("gpt")
    ids = torch.arange(24).view(3, 8) % 18
    seen: dict[tuple[int, str], InputStatistics] = {}
    through_layers(
        model.body, ids, lambda n, b, found: seen.update({(n, k): s for k, s in found.items()})
    )
    inputs: list[torch.Tensor] = []
    last = linears(model.body.layers()[1])["feed_forward.contract"]
    last.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        model.body(ids)
    x = inputs[0].flatten(0, 1)
    counted = seen[1, "feed_forward.contract"]
    torch.testing.assert_close(counted.product_II, x.T @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(counted.size_I, x.abs().sum(0), rtol=1e-4, atol=1e-4)
    assert counted.tokens == 24


def compressed(folder: Path, kind: str, like: str, **options: Any) -> tuple[Path, Any]:
    """A model of transformers' with sides of 32, quantised into a folder, and what it became."""
    save_model(folder / "theirs", kind, like=like, hidden_size=32, num_attention_heads=4, **options)
    start = open_folder(folder / "theirs")
    return folder / "small", start


@pytest.mark.parametrize(
    ("kind", "like", "more"),
    [
        ("LlamaForCausalLM", "ours", {"intermediate_size": 64}),
        ("Qwen3ForCausalLM", "ours", {"intermediate_size": 64, "tie_word_embeddings": True}),
        ("BertForSequenceClassification", "bert", {"intermediate_size": 64}),
        ("GPT2LMHeadModel", "ours", {"n_inner": 64}),
    ],
)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (8, True)])
def test_a_folder_opens_again(
    tmp_path: Path, kind: str, like: str, more: dict[str, Any], bits: int, symmetric: bool
):
    folder, start = compressed(tmp_path, kind, like, **more)
    config = CompressConfig(method="gptq", bits=bits, symmetric=symmetric)
    windows = torch.randint(5, 50, (8, 16), generator=torch.Generator().manual_seed(0))
    smaller = make_smaller(start, config, windows, lambda done, total: None)
    write_smaller(smaller, start, config, folder)
    again = open_folder(folder)
    assert again.quantised.keys() == smaller.matrices.keys()
    for name, read in again.quantised.items():
        assert torch.equal(read().dequantised(), again.tensors[name])
        assert torch.equal(again.tensors[name], smaller.model.tensors[name])
    if not kind.startswith("GPT2"):
        as_transformers_has_it(folder, kind, again)


def as_transformers_has_it(folder: Path, kind: str, model: Any) -> None:
    """transformers, with compressed-tensors, gives the logits that we do."""
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, kind).from_pretrained(folder).eval()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
        network = model.network().eval()
        if kind == "BertForMaskedLM":
            ours = network.token_logits(network.body(ids))
        elif kind.startswith("Bert"):
            ours = network(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))
        else:
            ours = network.logits(network.body(ids))
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-4)


def test_int4_takes_the_numbers_as_they_are(tmp_path: Path):
    folder, start = compressed(tmp_path, "LlamaForCausalLM", "ours", intermediate_size=64)
    config = CompressConfig(method="gptq")
    windows = torch.randint(5, 50, (8, 16), generator=torch.Generator().manual_seed(0))
    write_smaller(make_smaller(start, config, windows, lambda d, t: None), start, config, folder)
    model = open_folder(folder)
    network = model.causal_lm().eval()
    name = "body.blocks.0.attention.output"
    before = network.get_submodule(name).weight.detach().clone()
    prepare(network, "int4", rows=1)
    with torch.no_grad():
        columns = network.get_submodule(name)(torch.eye(32)).T
    # A product with one input is a weight: in bf16, which holds 2^-8 of it.
    torch.testing.assert_close(columns, before, rtol=2**-7, atol=2**-8)


def test_groups_that_do_not_fit_and_methods_that_a_network_can_not_have(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--group 64 does not divide the 32 inputs .* take 32"):
        quantise(make_model("gpt"), "round", Grid(4, 64), None)
    save_model(tmp_path / "nc", "NanoChatForCausalLM", like="ours", hidden_size=32,
               intermediate_size=64)  # fmt: skip
    model = open_folder(tmp_path / "nc").causal_lm()
    with pytest.raises(InputError, match="this architecture has none with gains"):
        quantise(model, "awq", Grid(4, 32), torch.zeros(1, 8, dtype=torch.long))
