"""The compiled kernels: the numbers of their formulas, the texts of the layers that they stand for,
and the same bits in any company."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from llmctl.errors import UsageError
from llmctl.inference import weights
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.engine import Engine, EngineConfig, EngineRequest
from llmctl.inference.int4 import Int4Linear, quantise_groups
from llmctl.inference.native import FusedLlama, NativeLinear, library
from llmctl.inference.quantised import Int8Linear, quantise
from llmctl.inference.weights import chosen_kernels, prepare
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.layers.quantised_matrix import QuantisedMatrix
from llmctl.tasks.generation import GenerateConfig
from llmctl.tasks.ngram.generate import NgramContinuation
from tests.inference.test_engine import LONG, finish, ids, log_probs, rules
from tests.small_decoders import PROMPTS, make_model

COMPILER = os.environ.get("CC", "cc")
pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason="there is no compiler to make them"
)

SHAPES = [(64, 64), (30, 50), (7, 128), (100, 36)]


def rounded_rows(x: torch.Tensor, group: int) -> torch.Tensor:
    """Rows in int8 and back, a scale for each group."""
    x_MGC = x.double().unflatten(-1, (-1, group))
    scale = x_MGC.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((x_MGC / scale).round() * scale).flatten(-2)


@pytest.mark.parametrize("rows", [1, 5, 19])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_an_int8_layer_is_its_formula(outputs: int, inputs: int, group: int, rows: int):
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    x = 3 * torch.randn(rows, inputs)
    weight_8, scale = quantise(weight)
    missing = (0, -inputs % group)
    used = F.pad(weight_8.double() * scale.double()[:, None], missing)
    expected = rounded_rows(F.pad(x, missing), group) @ used.T
    torch.testing.assert_close(
        NativeLinear.int8(weight, None, group=group)(x).double(), expected, rtol=1e-5, atol=1e-5
    )
    with_bias = NativeLinear.int8(weight, bias, group=group)(x[None])
    torch.testing.assert_close(with_bias[0].double(), expected + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 19])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_an_int4_layer_is_its_formula(outputs: int, inputs: int, group: int, rows: int):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(rows, inputs)
    missing = (0, -inputs % group)
    number, scale, offset = (p.double() for p in quantise_groups(F.pad(weight, missing), group))
    grouped = number.unflatten(1, (-1, group))
    used = ((grouped - 8) * scale[..., None] + offset[..., None]).flatten(1)
    expected = rounded_rows(F.pad(x, missing), group) @ used.T + bias
    found = NativeLinear.int4(weight, bias, group=group)(x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_large_input_spoils_its_group_alone():
    """As language models have them: a hundred times the rest, which one scale rounds away."""
    torch.manual_seed(0)
    weight, x = torch.randn(64, 512), torch.randn(8, 512)
    weight[:, 5] = 0
    without = NativeLinear.int8(weight, None)(x)
    x[:, 5] = 200.0
    error = (NativeLinear.int8(weight, None)(x) - without).norm() / without.norm()
    whole = (Int8Linear(weight, None)(x) - without).norm() / without.norm()
    assert error < 0.2 < 0.4 < whole


def test_numbers_of_a_folder_stay_as_they_are():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-8, 8, (40, 64), generator=generator).to(torch.int8)
    scale = torch.rand(40, 2, generator=generator).bfloat16().float()
    zero = torch.randint(-8, 8, (40, 2), generator=generator).to(torch.int8)
    matrix = QuantisedMatrix(numbers, scale, zero, 4)
    x = torch.zeros(64, 64).fill_diagonal_(127.0)  # which are their own numbers
    found = NativeLinear.of(matrix, None)(x) / 127
    offset = (-zero * scale).bfloat16().float().repeat_interleave(32, 1)
    expected = numbers * scale.repeat_interleave(32, 1) + offset
    torch.testing.assert_close(found.T, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [NativeLinear.int8, NativeLinear.int4])
def test_a_row_is_the_same_in_any_company(make: Any):
    torch.manual_seed(0)
    layer, x = make(torch.randn(70, 96), None), torch.randn(21, 96)
    together = layer(x)
    assert all(torch.equal(layer(x[r : r + 1])[0], together[r]) for r in range(21))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(layer(x), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("make", [NativeLinear.int8, NativeLinear.int4])
def test_what_is_no_number_stays_none_and_zeros_stay_zero(make: Any):
    layer = make(torch.randn(32, 64), None)
    assert not layer(torch.zeros(2, 64)).any()
    for value in (float("nan"), float("inf")):
        x = torch.ones(2, 64)
        x[1, 40] = value
        found = layer(x)
        assert found[0].isfinite().all()
        assert found[1].isnan().all()


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"num_kv_heads": 1}),
    ("qwen2", {}),
    ("mistral", {"sliding_window": 5}),
    ("smollm3", {"no_rope_every": 2}),
    ("qwen3", {"head_size": 16}),
]


def engine(model: CausalLM, kernels: Any, dtype: Any = "int8", **fields: Any) -> Engine:
    head = prepare(model, dtype, rows=16, kernels=kernels)
    return Engine(CausalDecoder(model, head=head), EngineConfig(**fields))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("arch", "shape"), KINDS)
def test_logits_are_those_of_the_layers_one_by_one(
    arch: str, shape: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
):
    """Beside PyTorch's products with the same numbers, of a prompt and of what is written: rows
    that are one group have one scale, as theirs."""
    monkeypatch.setitem(weights._NATIVE, "int8", partial(NativeLinear.int8, group=512))
    if not fused:
        monkeypatch.setattr(FusedLlama, "suits", lambda body: False)
    asked = {"max_new_tokens": 1}
    told = []
    for kernels in ("torch", "native"):
        one = engine(make_model(arch, max_positions=200, **shape), kernels)
        assert (one._reader.fused is not None) == (fused and kernels == "native")
        request = EngineRequest(prompt=LONG[1], rules=rules(**asked), prompt_top=3, top=3)
        one.submit(request)
        told.append(finish(one)[0, 0])
    (theirs,), (ours,) = told
    for one, other in zip(ours.prompt[1:], theirs.prompt[1:], strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=2e-3)
    assert ours.scored.log_prob == pytest.approx(theirs.scored.log_prob, abs=2e-3)
    assert theirs.prompt != ours.prompt


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(("arch", "shape"), KINDS)
def test_a_text_has_the_same_bits_in_any_company(arch: str, shape: dict[str, Any], dtype: str):
    asked = {"temperature": 0.9, "seed": 5}
    model = make_model(arch, max_positions=200, **shape)
    alone = engine(model, "native", dtype)
    prompts = [PROMPTS[1], LONG[1]]
    expected = []
    for prompt in prompts:
        request = alone.submit(EngineRequest(prompt=prompt, rules=rules(**asked)))
        expected.append(finish(alone)[request, 0])
    crowded = Engine(alone.decoder, EngineConfig(step_seconds=1e-9))
    for prompt in [LONG[2], prompts[0], *PROMPTS, prompts[1], LONG[0]]:
        crowded.submit(EngineRequest(prompt=prompt, rules=rules(**asked)))
    told = finish(crowded)
    for request, one in zip((1, len(PROMPTS) + 2), expected, strict=True):
        assert ids(told[request, 0]) == ids(one)
        assert log_probs(told[request, 0]) == log_probs(one)


def test_other_networks_have_the_layers_alone():
    model = make_model("gpt", max_positions=200)
    assert engine(model, "native")._reader.fused is None
    kinds = {type(module) for module in model.modules()}
    assert NativeLinear in kinds
    assert Int8Linear not in kinds


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_other_types_are_refused(dtype: Any):
    with pytest.raises(UsageError, match="--kernels native multiplies int8 and int4, not"):
        prepare(make_model("llama"), dtype, rows=1, kernels="native")


def test_an_n_gram_model_has_none():
    model: Any = SimpleNamespace(name="counts")
    with pytest.raises(UsageError, match="--kernels native: counts is an n-gram model"):
        NgramContinuation.decoder(model, GenerateConfig(kernels="native"), 1)


def test_without_a_compiler_the_option_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(library, "library", library.library.__wrapped__)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no C compiler here"):
        library.library()
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(UsageError, match="can't compile the kernels"):
        library.library()
    monkeypatch.setenv("CC", 'gcc "')
    with pytest.raises(UsageError, match="no command"):
        library.library()
    (tmp_path / "cc").write_text("no program")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(UsageError, match="can't be run"):
        library.library()
    monkeypatch.setenv("CC", shutil.which("true", path=os.defpath) or "true")
    with pytest.raises(UsageError, match="made no file"):
        library.library()
    (tmp_path / "cc").unlink()
    (tmp_path / "llmctl").rmdir()
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_another_or_cut_off_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "library", library.library.__wrapped__)
    (tmp_path / "llmctl.c").write_text("int x;")
    sources = library.KERNEL_SOURCES
    monkeypatch.setattr(library, "KERNEL_SOURCES", (str(tmp_path / "llmctl.c"),))
    for _ in range(2):
        with pytest.raises(UsageError, match="are not the kernels; name another compiler"):
            library.library()
    assert not list((tmp_path / "llmctl").iterdir())
    monkeypatch.setattr(library, "KERNEL_SOURCES", sources)
    assert library.library()
    (kept,) = (tmp_path / "llmctl").glob("*.so")
    cut_off = tmp_path / "second" / "llmctl" / kept.name
    cut_off.parent.mkdir(parents=True)
    cut_off.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    assert library.library()
    assert cut_off.stat().st_size == kept.stat().st_size


def test_ours_are_taken_where_they_are_made_for_the_processor(monkeypatch: pytest.MonkeyPatch):
    cpu, notes = torch.device("cpu"), list[str]()

    def chosen(kernels: Any = "auto", dtype: Any = "int8", device: torch.device = cpu) -> str:
        return chosen_kernels(kernels, dtype, device, notes.append)

    monkeypatch.setattr(weights, "are_made_for_this", lambda: True)
    assert chosen() == chosen(dtype="int4") == "native"
    assert chosen("torch") == chosen(dtype="fp32") == chosen(dtype="bf16") == "torch"
    assert chosen(device=torch.device("meta")) == "torch"
    head = prepare(make_model("llama"), "int8", rows=1, kernels="auto")
    assert isinstance(head, NativeLinear)
    monkeypatch.setattr(weights, "are_made_for_this", lambda: False)
    assert chosen() == "torch"
    assert not notes
    assert chosen("native") == "native"


def test_without_a_compiler_pytorch_s_are_taken_and_it_is_told(monkeypatch: pytest.MonkeyPatch):
    notes = list[str]()
    monkeypatch.setattr(weights, "are_made_for_this", lambda: True)
    monkeypatch.setattr(weights, "library", library.library.__wrapped__)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert chosen_kernels("auto", "int4", torch.device("cpu"), notes.append) == "torch"
    (note,) = notes
    assert "no C compiler here (cc, gcc or clang)" in note
    assert "install one" in note
    assert isinstance(prepare(make_model("llama"), "int4", rows=1, kernels="auto"), Int4Linear)


PLAIN = """
import torch
from llmctl.inference.native import NativeLinear
torch.manual_seed(0)
weight, x = torch.randn(70, 96), torch.randn(21, 96)
for make in (NativeLinear.int8, NativeLinear.int4):
    print(make(weight, None)(x).sum(1).tolist())
"""


def test_an_older_processor_gets_the_same_sums(tmp_path: Path):
    """Compiled for none of the instructions that are written out."""
    told = []
    for compiler in (COMPILER, f"{COMPILER} -mno-avx512vnni"):
        env = {**os.environ, "CC": compiler, "XDG_CACHE_HOME": str(tmp_path)}
        command = [sys.executable, "-c", PLAIN]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        told.append([eval(line) for line in done.stdout.splitlines()])
    torch.testing.assert_close(torch.tensor(told[0]), torch.tensor(told[1]))
