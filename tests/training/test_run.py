"""What a training leaves when it can't start, and what it knows when it goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import DivergedError, InputError, Interrupted, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.train import finetune, pretrain
from llmctl.tasks.finetuning import resolve as resolve_finetune
from llmctl.tasks.pretraining import resolve
from llmctl.training import device, signals
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.distributed.processes import SINGLE_PROCESS
from llmctl.training.machine import THREADS_OPEN
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.manifests import write_manifest
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
    monkeypatch.setattr("llmctl.stages.train.Trainer", fail)
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
    with pytest.raises(DivergedError, match="validation loss that is not finite"):
        finetune_again(workspace, labelled_file)
    assert not (folder / "model").exists()


def test_the_second_signal_stops_at_once():
    flag = signals.StopFlag()
    assert not flag()
    flag.handle(2, None)
    assert flag()
    with pytest.raises(Interrupted, match="second signal"):
        flag.handle(2, None)


def test_the_first_signal_stops_at_once_while_there_is_nothing_to_save():
    flag = signals.StopFlag()
    with pytest.raises(Interrupted, match="SIGTERM before a step") as told:
        flag.handle(signal.SIGTERM, None)
    assert told.value.exit_code == 143


def test_a_stop_at_once_is_told_as_one_though_a_library_makes_another_error_of_it():
    def compile_something() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted as error:
            raise RuntimeError("a compiler failed") from error

    with pytest.raises(Interrupted, match="SIGTERM"), signals.stop_on_signals():
        compile_something()


def test_a_stop_while_gradients_are_not_finite_names_the_last_checkpoint(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    """It is written after steps that count only."""
    steps = 0

    def step(trainer: Trainer, *_: Any) -> Any:
        nonlocal steps
        steps += 1
        parts, norm, taken = real(trainer, *_)
        if steps == 7:
            signal.raise_signal(signal.SIGTERM)
        return (parts, norm, taken) if steps < 6 else (parts, float("nan"), False)

    real = Trainer._step
    monkeypatch.setattr(Trainer, "_step", step)
    training = {**SHORT["training"], "max_steps": 20, "checkpoint_every": 3}
    with pytest.raises(Interrupted, match=r"at step 7 of 20; the last .* of step 3"):
        pretrain(workspace, resolve("bert", "nano", {**SHORT, "training": training}), name="new")


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


def fill(monkeypatch: pytest.MonkeyPatch, path_part: str, spare: int) -> None:
    """From the write after ``spare`` more on, there is no room for files of such a path."""

    def check(path: object) -> None:
        nonlocal spare
        if path_part in str(path):
            spare -= 1
            if spare < 0:
                raise FULL_DISK

    def guarded(module: Any, name: str, place: Callable[..., object]) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            check(place(*arguments, **options))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    guarded(os, "open", lambda path, flags, *_, **__: path if flags & os.O_CREAT else "")
    guarded(Path, "open", lambda path, mode="r", *_, **__: path if mode in ("a", "w", "wb") else "")
    guarded(Path, "write_text", lambda path, *_, **__: path)
    FULL_DISK.filename = None


@pytest.mark.parametrize(
    ("path_part", "spare", "named"),
    [
        ("step-00000004", 1, "checkpoints/step-00000004"),  # weights yes, the optimiser's no
        ("best-", 0, "checkpoints/best-00000002"),
        ("metrics.jsonl", 2, "metrics.jsonl"),
        ("progress.json", 3, "progress.json"),
        ("model.partial/.model.saf", 0, "model"),
        ("model.partial/config.json", 0, "model"),
        ("again/.manifest.json", 0, "manifest.json"),
    ],
)
def test_a_full_disk_names_the_path_and_leaves_what_goes_on(
    workspace: Workspace,
    labelled_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    path_part: str,
    spare: int,
    named: str,
):
    """The log, the progress, checkpoints, the best weights, the export, the last manifest."""
    training = {"max_steps": 6, "precision": "fp32", "checkpoint_every": 2, "eval_every": 2}
    config = resolve_finetune("classify", {"training": training, "patience": 0})

    def train(name: str) -> Any:
        return finetune(workspace, "tiny", labelled_file, config, name=name)[0]

    whole = train("whole")
    with monkeypatch.context() as patch:
        fill(patch, path_part, spare)
        with pytest.raises(OSError, match="No space left") as told:
            train("again")
    folder = workspace.path("run", "again")
    assert str(told.value.filename).startswith(str(folder / named))
    assert not list(folder.rglob(".*"))
    store = CheckpointStore(folder / "checkpoints", 2)
    # A checkpoint that would call lost weights the best isn't written.
    assert (store.load_newest(pytest.fail) is None) == ("best-" in named)
    assert train("again").manifest.files == whole.manifest.files


class Notes(Reporter):
    """What was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("left_open", [True, False])
def test_a_run_goes_on_with_the_threads_that_it_was_begun_with(
    workspace: Workspace, labelled_file: Path, monkeypatch: pytest.MonkeyPatch, left_open: bool
):
    """Where the user says nothing of threads; whoever says another number is told of it."""
    before = torch.get_num_threads()
    begun_with = before + 1
    unfinish(workspace, "subjects")
    run = workspace.get("run", "subjects")
    summary = {**run.manifest.summary, "threads": begun_with}
    write_manifest(run.folder, run.manifest.model_copy(update={"summary": summary}))
    monkeypatch.setattr(device, "cores", lambda: begun_with)
    monkeypatch.delenv(THREADS_OPEN, raising=False)
    if left_open:
        monkeypatch.setenv(THREADS_OPEN, "1")
    used: list[int] = []
    plain = Trainer.run

    def watched(trainer: Trainer) -> Any:
        used.append(torch.get_num_threads())
        return plain(trainer)

    monkeypatch.setattr(Trainer, "run", watched)
    notes = Notes()
    config = resolve_finetune("classify", {"training": {"epochs": 3, "precision": "fp32"}})
    finetune(workspace, "tiny", labelled_file, config, name="subjects", reporter=notes)
    said = "\n".join(notes.said)
    if left_open:
        assert used == [begun_with]
        assert f"was begun with --threads {begun_with}" in said
    else:
        assert used == [before]
        assert f"threads {begun_with}, now {before}" in said
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "summary",
    [{}, {"device": "cpu"}, {"device": "cpu", "precision": "fp64"}, {"device": 1},
     {"device": "cpu", "precision": "fp32", "threads": "many"}],
)  # fmt: skip
def test_a_run_that_does_not_tell_on_what_it_was_begun(workspace: Workspace, summary: dict):
    manifest = workspace.get("run", "tiny").manifest.model_copy(update={"summary": summary})
    with pytest.raises(InputError, match="run tiny does not tell on what it was begun"):
        device.same_machine(manifest, SINGLE_PROCESS, Reporter())
