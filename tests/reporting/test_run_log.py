"""A run's log in plain text: starts, notes, validations and ends, over all its sessions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import DivergedError, Interrupted
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.run_log import LoggedReporter
from llmctl.stages.train import pretrain
from llmctl.tasks.pretraining import resolve
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace

LAYERS: dict[str, Any] = {
    "model": {"hidden_size": 16, "num_heads": 2, "num_layers": 1},
    "data": {"sequence_length": 32, "eval_batches": 1},
    "training": {"max_steps": 4, "batch_size": 4, "precision": "fp32", "eval_every": 2,
                 "checkpoint_every": 1},
}  # fmt: skip


@pytest.fixture
def workspace(tiny_workspace: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(tiny_workspace / "shards", tmp_path / "shards")
    return Workspace(tmp_path)


def failing_at(patch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    take = Trainer._step

    def broken(self: Trainer, *args: Any) -> Any:
        if self.progress.step == step:
            raise error
        return take(self, *args)

    patch.setattr(Trainer, "_step", broken)


def test_all_sessions_of_a_run_are_in_its_log(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    config = resolve("bert", "nano", LAYERS)
    errors: list[tuple[int, BaseException]] = [
        (0, Interrupted("stopped by SIGINT at step 0", 2)),
        (2, DivergedError("step 2: the loss was not finite")),
        (3, ZeroDivisionError("a bug\nof ours")),
    ]
    for step, error in errors:
        with monkeypatch.context() as patch:
            failing_at(patch, step, error)
            with pytest.raises(type(error)):
                pretrain(workspace, config, name="run")
    run, _ = pretrain(workspace, config, name="run")
    before = (run.folder / "log.txt").read_text()
    pretrain(workspace, config, name="run")  # up to date: nothing to tell
    log = (run.folder / "log.txt").read_text()
    assert log == before
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  | {21}", line) for line in log.splitlines()
    )
    told = [line[21:] for line in log.splitlines() if line[0] != " "]
    starts = [line for line in told if line.startswith("started: llmctl ")]
    assert len(starts) == 4
    kinds = [re.split(":| from| after", line)[0] for line in told]
    known = ("started", "interrupted", "failed", "finished", "step ", "going on")
    assert [kind for kind in kinds if kind.startswith(known)] == [
        "started", "interrupted", "started", "step 2 of 4", "failed",
        "started", "going on with run", "failed", "started", "going on with run", "step 4 of 4",
        "finished",
    ]  # fmt: skip
    assert "failed: step 2: the loss was not finite" in told
    assert "ZeroDivisionError: a bug" in log
    assert re.search(r"step 4 of 4: validation loss \d\.\d{4}", log)
    assert not any("log" in name for name in run.manifest.files)


def test_what_was_said_before_the_run_was_there(tmp_path: Path):
    class Seen(Reporter):
        def note(self, text: str) -> None:
            texts.append(text)

    texts: list[str] = []
    reporter = LoggedReporter(Seen())
    reporter.note("shards: stories (the newest)")
    assert texts == ["shards: stories (the newest)"]
    reporter.attach(tmp_path)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0][21:].startswith("started: ")
    assert [line[21:] for line in lines[1:]] == ["shards: stories (the newest)"]
