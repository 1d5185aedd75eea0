"""What is computed on a GPU is what a processor computes: trainings, checkpoints, texts, memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llmctl.cli.app import app
from llmctl.stages.doctor import examine
from llmctl.training.planning.memory import free_bytes, peak_bytes, resident_bytes
from llmctl.training.precision import (
    choose_compile,
    choose_device,
    choose_precision,
    has_float8,
    matrix_rate,
)
from tests.conftest import TINY

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
STEPS = 12


@pytest.fixture
def encoders(tiny_workspace: Path, tmp_path: Path) -> Path:
    """A copy, for tests that add runs."""
    return Path(shutil.copytree(tiny_workspace, tmp_path / "encoders"))


@pytest.fixture
def decoders(decoder_workspace: Path, tmp_path: Path) -> Path:
    """A copy, for tests that add runs."""
    return Path(shutil.copytree(decoder_workspace, tmp_path / "decoders"))


def run(root: Path, *words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, words), "-w", str(root)])
    assert result.exit_code == code, result.output
    return result.stdout if not code else result.stderr


def losses(root: Path, name: str, arch: str, *sets: str) -> list[float]:
    words = [word for text in sets for word in ("--set", text)]
    run(root, "pretrain", "--arch", arch, *TINY, "--name", name, "--keep-checkpoints", "last",
        "--set", "training.log_every=1", *words,
        *([] if any("max_steps" in text for text in sets)
          else ["--set", f"training.max_steps={STEPS}"]))  # fmt: skip
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [r["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]


@pytest.mark.parametrize("arch", ["bert", "modernbert", "gpt", "nanochat"])
@pytest.mark.parametrize(("precision", "rel"), [("fp32", 2e-3), ("bf16", 3e-2)])
def test_a_gpu_has_the_losses_of_a_processor(
    encoders: Path, decoders: Path, arch: str, precision: str, rel: float
):
    """In fp32 to sums in another order. In bf16 packed texts go by the kernel that takes their
    bounds, where fp32 has a mask: eight bits of a number are two decimal places."""
    root = encoders if "bert" in arch else decoders
    ours = losses(root, "gpu", arch, f"training.device={DEVICE}", f"training.precision={precision}")
    theirs = losses(root, "cpu", arch, "training.device=cpu")
    assert len(ours) == len(theirs) == STEPS
    assert ours == pytest.approx(theirs, rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["bert", "gpt"])
def test_compiled_kernels_have_the_same_losses(encoders: Path, decoders: Path, arch: str):
    root = encoders if arch == "bert" else decoders
    on_gpu = f"training.device={DEVICE}"
    compiled = losses(root, "compiled", arch, on_gpu, "training.compile=on")
    plain = losses(root, "plain", arch, on_gpu, "training.compile=off")
    assert compiled == pytest.approx(plain, rel=2e-3)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_checkpoint_of_a_gpu_is_gone_on_from(decoders: Path, optimiser: str):
    """Not to the bit: some kernels add in the order in which their parts are done."""
    sets = (f"training.device={DEVICE}", f"training.optimiser={optimiser}",
            "training.schedule=constant", "training.warmup=0")  # fmt: skip
    whole = losses(decoders, "whole", "gpt", *sets)
    losses(decoders, "parts", "gpt", *sets, f"training.max_steps={STEPS // 2}")
    assert losses(decoders, "parts", "gpt", *sets) == pytest.approx(whole, rel=2e-3)


def test_texts_and_answers_are_those_of_a_processor(encoders: Path, decoders: Path):
    question = ["--prompt", "Where does the ship sail?", "--temperature", "0"]
    command = ["generate", "--from", "talker", *question, "--max-new-tokens", "12"]
    texts = {run(decoders, *command, "--device", device) for device in (DEVICE, "cpu")}
    assert len(texts) == 1
    command = ["predict", "--from", "subjects", "--json", "the ship sails over the sea"]
    ours, theirs = (
        json.loads(run(encoders, *command, "--device", device))["probabilities"]
        for device in (DEVICE, "cpu")
    )
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_what_is_chosen_by_itself():
    device = choose_device("auto")
    assert device.type == DEVICE
    assert matrix_rate(device, torch.float32) > 0
    if torch.cuda.get_device_capability() >= (8, 0):
        assert choose_precision("auto", device) == "bf16"
    assert choose_compile("auto", device, 1e6)
    assert not choose_compile("auto", device, 1.0)


def test_eight_bits_are_used_or_refused(decoders: Path):
    words = ["pretrain", "--arch", "nanochat", *TINY, "--name", "eight", "--set",
             "training.precision=fp8", "--set", f"training.device={DEVICE}",
             "--set", "training.max_steps=4"]  # fmt: skip
    if has_float8(torch.device(DEVICE)):
        run(decoders, *words)
        manifest = json.loads((decoders / "runs" / "eight" / "manifest.json").read_text())
        assert manifest["summary"]["precision"] == "fp8"
    else:
        assert "fp8" in run(decoders, *words, code=2)


def test_memory_is_that_of_the_gpu():
    device = torch.device(DEVICE)
    free, before = free_bytes(device), resident_bytes()
    held = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    assert resident_bytes() >= before + held.nbytes or before > held.nbytes
    assert peak_bytes() >= held.nbytes
    assert free_bytes(device) <= free


def test_doctor_lists_it(tmp_path: Path):
    (first, *_) = examine(tmp_path)["gpus"]
    assert first["name"] == torch.cuda.get_device_name(0)
    assert tuple(first["compute_capability"]) == torch.cuda.get_device_capability(0)
