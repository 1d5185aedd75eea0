"""Runs that are killed or stopped go on exactly, through the command line."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.run import llmctl, one_sentence, start

STEPS = 400
OPTIONS = [
    "pretrain", *TINY, "--set", f"training.max_steps={STEPS}",
    "--set", "training.checkpoint_every=20", "--set", "training.log_every=7",
    "--set", "training.eval_every=50", "--set", "model.dropout=0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    root = tmp_path_factory.mktemp("resume")
    llmctl(root, "tokenize", corpus_file, "--document", "line", "--vocab-size", "120",
           "--validation", "0.1")  # fmt: skip
    llmctl(root, *OPTIONS, "--name", "whole")
    return root


def metrics(root: Path, run: str) -> list[dict[str, Any]]:
    """The log of a run without what depends on the clock."""
    records = []
    for line in (root / "runs" / run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for clocked in (
            "tokens_per_second", "elapsed", "padding", "utilisation", "memory_bytes",
        ):  # fmt: skip
            record.pop(clocked, None)
        records.append(record)
    return records


def wait_for_step(root: Path, run: str, step: int) -> None:
    deadline = time.monotonic() + 120
    path = root / "runs" / run / "progress.json"
    while time.monotonic() < deadline:
        if path.exists() and json.loads(path.read_text()).get("step", 0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"run {run} did not reach step {step}")


def assert_equal_runs(root: Path, run: str) -> None:
    assert metrics(root, run) == metrics(root, "whole")
    ours, whole = (
        (root / "runs" / name / "model" / "model.safetensors").read_bytes()
        for name in (run, "whole")
    )
    assert ours == whole


def test_killed_at_random_moments_ends_the_same_to_the_bit(shards: Path):
    generator = random.Random(0)
    lost = 0
    for _ in range(3):
        process = start(shards, *OPTIONS, "--name", "killed")
        begun = json_step(shards, "killed")
        wait_for_step(shards, "killed", begun + generator.randint(25, 70))
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = json_step(shards, "killed")
        checkpoints = sorted((shards / "runs" / "killed" / "checkpoints").glob("step-*"))
        saved = int(checkpoints[-1].name[5:]) if checkpoints else 0
        lost += reached > saved
        status = json.loads(llmctl(shards, "status", "killed", "--json").stdout)
        assert status["run"]["state"] == "interrupted"
        assert "--name killed" in status["resume"]
        assert "--shards stories" in status["resume"]
    assert lost, "no kill lost any work, so nothing was proven"
    llmctl(shards, *OPTIONS, "--name", "killed")
    assert_equal_runs(shards, "killed")
    assert not list((shards / "runs").rglob("*.partial"))


def json_step(root: Path, run: str) -> int:
    path = root / "runs" / run / "progress.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(
    shards: Path, number: signal.Signals, code: int
):
    name = f"stopped-{code}"
    process = start(shards, *OPTIONS, "--name", name)
    wait_for_step(shards, name, 21)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert f"--name {name}" in err
    step = json_step(shards, name)
    assert (shards / "runs" / name / "checkpoints" / f"step-{step:08d}").is_dir()
    assert 0 < step < STEPS
    llmctl(shards, *OPTIONS, "--name", name)
    assert_equal_runs(shards, name)


def test_a_second_writer_is_refused(shards: Path):
    # So many steps that it is still at it when the last command has started.
    endless = [*OPTIONS, "--set", "training.max_steps=100000", "--name", "busy"]
    first = start(shards, *endless)
    wait_for_step(shards, "busy", 1)
    second = llmctl(shards, *endless, code=4)
    assert "another process" in one_sentence(second)
    running = json.loads(llmctl(shards, "status", "--json").stdout)["runs"]
    assert next(run for run in running if run["name"] == "busy")["state"] == "running"
    first.kill()
    first.wait()


def test_a_finished_run_is_up_to_date_and_untouched(shards: Path):
    model = shards / "runs" / "whole" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    result = llmctl(shards, *OPTIONS, "--name", "whole")
    assert "up to date" in result.stderr
    assert model.stat().st_mtime_ns == before


def test_the_same_name_with_other_options_is_refused(shards: Path):
    result = llmctl(
        shards, *OPTIONS, "--name", "whole", "--set", "training.learning_rate=0.5", code=2
    )
    assert "--force" in one_sentence(result)


def test_how_often_a_checkpoint_is_written_does_not_change_the_run(shards: Path):
    result = llmctl(shards, *OPTIONS, "--name", "whole", "--set", "training.checkpoint_every=33")
    assert "up to date" in result.stderr
