"""Runs that are killed or stopped go on exactly, through the command line."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from tests.benchmarks import kills
from tests.benchmarks.kills import Moment, Training, check_equal, kill_until, trainings, whole
from tests.run import llmctl, one_sentence, start

STEPS = 160


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As ``tests/benchmarks/kills.py`` has it: runs compare at the same number of threads only. All
    that it doesn't kill may run in a fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(kills, "run", lambda root, *words: llmctl(root, *words).stdout)
        yield


@pytest.fixture(scope="module")
def commands(labelled_file: Path) -> dict[str, Training]:
    """What ``tests/benchmarks/kills.py`` kills a hundred times."""
    every = trainings(STEPS, labelled_file, base="bert-whole")
    return {training.name: training for training in every}


@pytest.fixture(scope="module")
def options(commands: dict[str, Training]) -> list[str]:
    return list(commands["bert"].words)


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, commands: dict[str, Training]
) -> Path:
    """A workspace with a run ``bert-whole`` that nothing happened to."""
    root = tmp_path_factory.mktemp("resume")
    llmctl(root, "tokenize", corpus_file, "--document", "line", "--vocab-size", "120",
           "--validation", "0.1", "--name", "words")  # fmt: skip
    whole(root, commands["bert"])
    return root


def wait_for_step(root: Path, run: str, step: int) -> None:
    deadline = time.monotonic() + 120
    path = root / "runs" / run / "progress.json"
    while time.monotonic() < deadline:
        if path.exists() and json.loads(path.read_text()).get("step", 0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"run {run} did not reach step {step}")


def test_killed_anywhere_it_ends_the_same_to_the_bit(root: Path, commands: dict[str, Training]):
    """The short form of ``tests/benchmarks/kills.py``, which draws the moments."""
    when: dict[str, list[Moment]] = {
        "bert": [(1.0, None), (0.05, "in steps"), (0.0, "in writing a checkpoint")],
        "finetune": [(0.02, "in steps"), (0.01, "in the export"), (0.0, "after its last word")],
    }
    whole(root, commands["finetune"])
    for name, moments in when.items():
        endless = chain(moments, repeat((0.0, "in steps")))
        tally = kill_until(root, commands[name], len(moments), endless)
        assert any(tally.lost), "no kill lost any work, so nothing was proven"
        assert tally.finished


def test_killed_in_tidying_up_a_finished_run_leaves_nothing_behind(
    root: Path, options: list[str], tmp_path: Path
):
    """Its last word is said before that, so the same command finds it up to date."""
    shutil.copytree(root, tmp_path / "workspace")
    run = tmp_path / "workspace" / "runs" / "bert-whole"
    half_deleted = run / "checkpoints" / ".step-00000380.partial"
    half_deleted.mkdir()
    (half_deleted / "model.safetensors").write_bytes(b"half")
    before = sorted(path for path in run.rglob("*") if half_deleted not in (path, path.parent))
    found = llmctl(tmp_path / "workspace", *options, "--name", "bert-whole")
    assert "up to date" in found.stderr
    assert sorted(run.rglob("*")) == before


def json_step(root: Path, run: str) -> int:
    path = root / "runs" / run / "progress.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(
    root: Path, commands: dict[str, Training], number: signal.Signals, code: int
):
    options = commands["bert"].words
    name = f"stopped-{code}"
    process = start(root, *options, "--name", name)
    wait_for_step(root, name, 21)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert f"--name {name}" in err
    status = json.loads(llmctl(root, "status", name, "--json").stdout)
    assert status["run"]["state"] == "interrupted"
    assert f"--name {name}" in status["resume"]
    assert "--shards words" in status["resume"]
    step = json_step(root, name)
    assert (root / "runs" / name / "checkpoints" / f"step-{step:08d}").is_dir()
    assert 0 < step < STEPS
    llmctl(root, *options, "--name", name)
    check_equal(root, name, commands["bert"])


def test_a_second_writer_is_refused(root: Path, options: list[str]):
    # So many steps that it is still at it when the last command has started.
    endless = [*options, "--set", "training.max_steps=100000", "--name", "busy"]
    first = start(root, *endless)
    wait_for_step(root, "busy", 1)
    second = llmctl(root, *endless, code=4)
    assert "another process" in one_sentence(second)
    running = json.loads(llmctl(root, "status", "--json").stdout)["runs"]
    assert next(run for run in running if run["name"] == "busy")["state"] == "running"
    first.kill()
    first.wait()


def test_a_finished_run_is_up_to_date_and_untouched(root: Path, options: list[str]):
    model = root / "runs" / "bert-whole" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    result = llmctl(root, *options, "--name", "bert-whole")
    assert "up to date" in result.stderr
    assert model.stat().st_mtime_ns == before


def test_the_same_name_with_other_options_is_refused(root: Path, options: list[str]):
    result = llmctl(
        root, *options, "--name", "bert-whole", "--set", "training.learning_rate=0.5", code=2
    )
    assert "--force" in one_sentence(result)


def test_how_often_a_checkpoint_is_written_does_not_change_the_run(root: Path, options: list[str]):
    result = llmctl(root, *options, "--name", "bert-whole", "--set", "training.checkpoint_every=33")
    assert "up to date" in result.stderr
