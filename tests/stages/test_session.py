"""What a training leaves when it can't start, and what it knows when it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import DivergedError, InputError, UsageError
from llmctl.stages import session
from llmctl.stages.finetune import finetune
from llmctl.stages.finetune import resolve as resolve_finetune
from llmctl.stages.pretrain import pretrain, resolve
from llmctl.workspace.artefacts import Workspace, write_manifest
from llmctl.workspace.runs import read_progress

SHORT: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_heads": 2},
    "data": {"sequence_length": 32, "eval_batches": 2},
    "training": {"max_steps": 3, "batch_size": 8, "precision": "fp32"},
}


@pytest.fixture
def workspace(tiny_workspace: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(tiny_workspace, tmp_path / "workspace")))


def files(workspace: Workspace) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in (workspace.root / "runs").rglob("*") if p.is_file()}


def unfinish(workspace: Workspace, name: str) -> None:
    """As a run that was killed between its last checkpoint and its manifest."""
    run = workspace.get("run", name)
    machine = ("device", "precision", "compiled", "processes", "threads", "cpu")
    summary = {k: v for k, v in run.manifest.summary.items() if k in machine}
    changes = {"finished": None, "files": {}, "summary": summary}
    write_manifest(run.folder, run.manifest.model_copy(update=changes))
    shutil.rmtree(run.folder / "model")


def finetune_again(workspace: Workspace, labelled_file: Path) -> Any:
    config = resolve_finetune("classify", {"training": {"epochs": 3, "precision": "fp32"}})
    return finetune(workspace, "tiny", labelled_file, config, name="subjects")


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return {"training": {"device": "cuda"}}


def fail(*args: Any, **options: Any) -> Any:
    raise InputError("the data can't be read")


@pytest.mark.parametrize("name", ["tiny", "new"])
def test_a_device_that_is_not_there_changes_nothing(
    workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch
):
    before = files(workspace)
    config = resolve("bert", "nano", SHORT, no_gpu(monkeypatch))
    with pytest.raises(UsageError, match=r"training\.device cuda"):
        pretrain(workspace, config, name=name, force=True)
    assert files(workspace) == before
    assert not (workspace.root / "runs" / "new").exists()


@pytest.mark.parametrize("name", ["tiny", "new"])
def test_a_run_that_can_not_be_prepared_changes_nothing(
    workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch
):
    before = files(workspace)
    monkeypatch.setattr("llmctl.stages.pretrain.Trainer", fail)
    with pytest.raises(InputError, match="can't be read"):
        pretrain(workspace, resolve("bert", "nano", SHORT), name=name, force=True)
    assert files(workspace) == before
    assert not (workspace.root / "runs" / "new").exists()


def test_force_replaces_the_whole_run(workspace: Workspace):
    mark = workspace.root / "runs" / "tiny" / "mark"
    mark.touch()
    run, _ = pretrain(workspace, resolve("bert", "nano", SHORT), name="tiny", force=True)
    assert run.manifest.summary["steps"] == 3
    assert not mark.exists()
    assert not list((workspace.root / "runs").glob(".*"))


def test_a_run_begun_on_a_device_that_is_not_here(
    workspace: Workspace, labelled_file: Path, monkeypatch: pytest.MonkeyPatch
):
    unfinish(workspace, "subjects")
    run = workspace.get("run", "subjects")
    summary = {**run.manifest.summary, "device": "cuda"}
    write_manifest(run.folder, run.manifest.model_copy(update={"summary": summary}))
    no_gpu(monkeypatch)
    with pytest.raises(UsageError, match="subjects was begun on cuda"):
        finetune_again(workspace, labelled_file)


def test_a_run_that_goes_on_at_its_end_keeps_its_figures(workspace: Workspace, labelled_file: Path):
    before = workspace.get("run", "subjects").manifest
    told = read_progress(workspace.path("run", "subjects"))
    unfinish(workspace, "subjects")
    again, there = finetune_again(workspace, labelled_file)
    assert not there
    assert again.manifest.summary == before.summary
    assert again.manifest.files == before.files
    progress = read_progress(again.folder)
    for key in ("elapsed", "seconds_per_step", "share_done", "step"):
        assert progress[key] == told[key]


def test_the_best_weights_are_checked_when_the_model_is_written(
    workspace: Workspace, labelled_file: Path
):
    unfinish(workspace, "subjects")
    folder = workspace.path("run", "subjects")
    best = next(folder.glob("checkpoints/best-*/model.safetensors"))
    content = bytearray(best.read_bytes())
    content[-5] ^= 1
    best.write_bytes(content)
    with pytest.raises(InputError, match=r"best-\d+/model\.safetensors has changed"):
        finetune_again(workspace, labelled_file)
    shutil.rmtree(best.parent)
    with pytest.raises(InputError, match="--force"):
        finetune_again(workspace, labelled_file)
    assert not (folder / "model").exists()
    assert read_progress(folder)["state"] == "failed"


def test_no_model_is_written_of_a_loss_that_is_not_finite(
    workspace: Workspace, labelled_file: Path
):
    unfinish(workspace, "subjects")
    folder = workspace.path("run", "subjects")
    steps = json.loads(next(folder.glob("checkpoints/step-*/state.json")).read_text())["step"]
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "validation", "step": steps, "loss": float("nan")}) + "\n")
    with pytest.raises(DivergedError, match="validation loss of nan"):
        finetune_again(workspace, labelled_file)
    assert not (folder / "model").exists()


def test_the_second_signal_stops_at_once():
    flag = session.StopFlag()
    assert not flag()
    flag.handle(2, None)
    assert flag()
    with pytest.raises(session.Interrupted, match="second signal"):
        flag.handle(2, None)
