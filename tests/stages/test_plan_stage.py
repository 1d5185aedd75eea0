"""Plans beside what the runs then take."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.run import llmctl, one_sentence, start

SHORT = [*TINY, "--set", "training.max_steps=150", "--set", "data.eval_batches=1",
         "--set", "training.compile=off"]  # fmt: skip


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Two threads that wait for each other take many times as long where others compute too."""


@pytest.fixture
def own_workspace(tiny_workspace: Path, tmp_path: Path) -> Path:
    """A copy, for tests that add runs."""
    return Path(shutil.copytree(tiny_workspace, tmp_path / "workspace"))


def planned(workspace: Path, *words: object, anew: bool = False) -> dict[str, Any]:
    """What ``llmctl plan`` foretells; its memory, of a process that starts from nothing."""
    out = llmctl(workspace, "plan", *words, "--json", env=ONE_THREAD, anew=anew).stdout
    return json.loads(out)["plan"]  # type: ignore[no-any-return]


def near(predicted: float, real: float) -> bool:
    """The promise is 15 % on a machine of its own (tests/benchmarks/plan.py): tests have none."""
    return real / 3 < predicted < 3 * real


def run_measured(workspace: Path, *words: object) -> tuple[dict[str, Any], float, int]:
    """What a command prints, its wall clock and its peak memory."""
    begun = time.perf_counter()
    process = start(workspace, *words, "--json", "--quiet", env=ONE_THREAD)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return json.loads(text), time.perf_counter() - begun, usage.ru_maxrss * 1024


def test_a_plan_is_what_the_run_then_does(own_workspace: Path):
    plan = planned(own_workspace, *SHORT, "--price-per-hour", 2.5, anew=True)
    summary, seconds, memory = run_measured(
        own_workspace, "pretrain", *SHORT, "--name", "as-planned"
    )
    assert plan["total_steps"] == summary["steps"] == 150
    assert plan["parameters"] == summary["parameters"]
    assert plan["tokens"] == pytest.approx(summary["tokens"], rel=0.1)
    assert plan["memory_bytes"] == pytest.approx(memory, rel=0.15)
    assert near(plan["expected_seconds"], seconds)
    assert plan["cost"] == pytest.approx(plan["expected_seconds"] * 2.5 / 3600)
    looks = (own_workspace / "runs/as-planned/metrics.jsonl").read_text().count('"validation"')
    assert plan["validations"] == looks


def test_parts_add_up_and_nothing_is_left_behind(tiny_workspace: Path):
    before = sorted(p for p in tiny_workspace.rglob("*") if "rehearsal" in p.name)
    runs = sorted(p.name for p in (tiny_workspace / "runs").iterdir())
    plan = planned(tiny_workspace, *SHORT)
    assert sum(plan["parameters_by_part"].values()) == plan["parameters"]
    assert sum(plan["seconds_by_part"].values()) == pytest.approx(plan["expected_seconds"])
    assert sum(plan["memory_by_kind"].values()) == plan["memory_bytes"]
    assert plan["flops"] == pytest.approx(plan["flops_per_token"] * plan["tokens"])
    assert 0 < plan["flops_utilisation"] < 1
    assert sorted(p.name for p in (tiny_workspace / "runs").iterdir()) == runs
    assert sorted(p for p in tiny_workspace.rglob("*") if "rehearsal" in p.name) == before == []


def test_a_dry_run_is_the_same_plan(tiny_workspace: Path):
    dry = json.loads(llmctl(tiny_workspace, "pretrain", *SHORT, "--dry-run").stdout)
    plan = json.loads(llmctl(tiny_workspace, "plan", *SHORT, "--json").stdout)
    assert dry["config"] == plan["config"]
    assert dry["plan"].keys() == plan["plan"].keys()
    for key in ("parameters_by_part", "total_steps", "flops_per_token", "validations"):
        assert dry["plan"][key] == plan["plan"][key]


def test_a_plan_reads_a_recipe_and_draws_tables(tiny_workspace: Path, tmp_path: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "[pretrain]\npreset = 'nano'\nshards = 'stories'\n"
        "[pretrain.model]\nhidden_size = 32\nnum_heads = 2\n"
        "[pretrain.training]\ntime_limit = '40s'\nbatch_size = 8\n"
    )
    out = llmctl(
        tiny_workspace, "plan", recipe, "--price-per-hour", 3600, "--set", "data.eval_batches=1"
    ).stdout
    for word in ("attention", "feed-forward", "gradients", "optimiser's state", "export", "cost"):
        assert word in out
    # Forty seconds of training and what goes before and after it, at one a second.
    cost = next(line for line in out.splitlines() if "cost" in line)
    assert 40 < float(cost.split()[1]) < 120


def test_n_grams_have_a_plan_too(decoder_workspace: Path):
    plan = planned(decoder_workspace, "--arch", "ngram")
    assert plan["parameters_at_most"] > 0
    priced = planned(decoder_workspace, "--arch", "ngram", "--price-per-hour", "7200")
    assert priced["cost"] == pytest.approx(2 * priced["expected_seconds"])
    words = ("plan", "--arch", "ngram", "--price-per-hour", "7200")
    assert "at 7200 an hour" in llmctl(decoder_workspace, *words).stdout


def test_a_finetuning_is_planned_from_its_data(own_workspace: Path, labelled_file: Path):
    words = ["--from", "tiny", "--data", labelled_file, "--set", "training.epochs=3",
             "--set", "training.precision=fp32"]  # fmt: skip
    plan = planned(own_workspace, "--stage", "finetune", *words, anew=True)
    summary, seconds, memory = run_measured(own_workspace, "finetune", *words, "--name", "tuned")
    assert plan["total_steps"] == summary["steps"]
    assert plan["parameters"] == summary["parameters"]
    assert plan["train_examples"] == summary["train_examples"]
    assert plan["memory_bytes"] == pytest.approx(memory, rel=0.15)
    assert near(plan["expected_seconds"], seconds)


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["--stage", "evaluate"], 2, ["--stage", "evaluate"]),
        (["--stage", "finetune", "--arch", "gpt"], 2, ["--arch"]),
        (["--stage", "finetune"], 2, ["--from", "--data"]),
        (["--data", "labelled.csv"], 2, ["--data", "--stage finetune"]),
        (["--arch", "ngram", "--preset", "nano"], 2, ["--preset"]),
        (["nothing.toml"], 3, ["nothing.toml"]),
        (["--shards", "nobody"], 3, ["nobody"]),
    ],
)
def test_what_a_plan_can_not_be_made_of(
    tiny_workspace: Path, words: list[str], code: int, names: list[str]
):
    message = one_sentence(llmctl(tiny_workspace, "plan", *words, code=code))
    for name in names:
        assert name in message


def test_a_price_is_not_below_nothing(tiny_workspace: Path):
    result = llmctl(tiny_workspace, "plan", "--price-per-hour", "-1", code=2)
    assert "--price-per-hour" in result.stderr
