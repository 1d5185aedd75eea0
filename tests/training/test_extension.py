"""A finished run that is trained for longer: exactly where the schedule allows it, and always as it
says."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import DivergedError, InputError, NameTaken, UsageError
from llmctl.formats.open import find_model
from llmctl.reporting.reporter import Reporter
from llmctl.stages.train import finetune, pretrain
from llmctl.tasks import finetuning, pretraining
from llmctl.training import extension
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.metrics import read_metrics
from llmctl.workspace.runs import run_state

SHAPE: dict[str, Any] = {
    "model": {"hidden_size": 16, "num_heads": 2, "num_layers": 1},
    "data": {"sequence_length": 32, "eval_batches": 1},
}
TRAINING: dict[str, Any] = {
    "batch_size": 4, "precision": "fp32", "log_every": 1, "learning_rate": 0.01, "warmup": 0.0,
    "schedule": "constant", "eval_every": 3,
}  # fmt: skip


class Notes(Reporter):
    def __init__(self) -> None:
        self.text = ""

    def note(self, text: str) -> None:
        self.text += text + "\n"


@pytest.fixture
def workspace(tiny_workspace: Path, tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    root.mkdir()
    shutil.copytree(tiny_workspace / "shards", root / "shards")
    return Workspace(root)


def train(workspace: Workspace, name: str, steps: int, **training: Any) -> tuple[Artefact, str]:
    notes = Notes()
    layers = {**SHAPE, "training": {**TRAINING, "max_steps": steps, **training}}
    config = pretraining.resolve("bert", "nano", layers)
    run, _ = pretrain(workspace, config, name=name, reporter=notes)
    return run, notes.text


def rates(run: Artefact) -> list[float]:
    records = read_metrics(run.folder / "metrics.jsonl")
    return [r["learning_rate"] for r in records if r["kind"] == "train"]


def weights(run: Artefact) -> bytes:
    return (run.folder / "model" / "model.safetensors").read_bytes()


def checkpoints(run: Artefact) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").glob("*"))


def test_with_a_constant_rate_twice_n_steps_are_2n_at_once(workspace: Workspace):
    whole, _ = train(workspace, "whole", 12)
    first, _ = train(workspace, "parts", 6, keep_checkpoints="last")
    created, half = first.manifest.created, weights(first)
    run, said = train(workspace, "parts", 12, keep_checkpoints="last")
    assert "from step 6 to 12, as if it had not ended" in said
    assert weights(run) == weights(whole) != half
    assert run.manifest.digest == whole.manifest.digest
    assert run.manifest.summary["steps"] == 12
    assert run.manifest.created == created
    (record,) = run.manifest.summary["extended"]
    assert record["steps"] == 6
    assert (record["optimiser"], record["warmed_up_again"]) == ("kept", False)
    steps = [r["step"] for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == list(range(1, 13))
    again, said = train(workspace, "parts", 12)
    assert again.manifest == run.manifest
    # And once more.
    train(workspace, "parts", 15, keep_checkpoints="last")
    more, _ = train(workspace, "more", 15)
    assert weights(workspace.get("run", "parts")) == weights(more)


def test_a_rate_that_had_fallen_rises_again_to_the_longer_schedule(workspace: Workspace):
    train(workspace, "run", 10, schedule="linear", keep_checkpoints="last")
    run, said = train(workspace, "run", 20, schedule="linear", warmup=0.0)
    assert "warmed up again" in said
    linear = [0.01 * (1 - step / 20) for step in range(10, 20)]
    assert rates(run)[:10] == pytest.approx([0.01 * (1 - step / 10) for step in range(10)])
    # The step that begins the rise has none, as at the beginning of a training.
    assert rates(run)[10:] == pytest.approx([0.0, *linear[1:]])
    assert run.manifest.summary["extended"][0]["warmed_up_again"] is True


def test_the_rise_takes_the_share_of_the_warm_up(workspace: Workspace):
    options = {"schedule": "cosine", "warmup": 0.2, "keep_checkpoints": "last"}
    train(workspace, "run", 10, **options)
    run, _ = train(workspace, "run", 20, **options)
    peaks = [0.5 * (1 + math.cos(math.pi * (step / 20 - 0.2) / 0.8)) for step in range(10, 20)]
    ramp = [min(1.0, (step / 20 - 0.5) / (0.2 * 0.5)) for step in range(10, 20)]
    assert rates(run)[10:] == pytest.approx(
        [0.01 * p * r for p, r in zip(peaks, ramp, strict=True)]
    )


def test_warm_up_stable_decay_goes_on_from_before_the_fall(workspace: Workspace):
    options = {"schedule": "wsd", "decay": 0.5, "checkpoint_every": 2}
    whole, _ = train(workspace, "whole", 16, **options)
    train(workspace, "run", 8, keep_checkpoints="all", **options)
    run, said = train(workspace, "run", 16, keep_checkpoints="all", **options)
    assert "from step 4 to 16, the last checkpoint before the learning rate began to fall" in said
    assert weights(run) == weights(whole)
    assert rates(run) == rates(whole)


def test_checkpoints_go_once_the_model_stands_unless_they_are_kept(workspace: Workspace):
    for keep, left in {
        2: [],
        "last": ["step-00000006"],
        "all": ["step-00000002", "step-00000004", "step-00000006"],
    }.items():
        run, _ = train(workspace, f"keep-{keep}", 6, checkpoint_every=2, keep_checkpoints=keep)
        assert checkpoints(run) == left
    assert not (workspace.path("run", "keep-2") / "checkpoints").exists()


def test_without_checkpoints_it_goes_on_from_the_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    first, _ = train(workspace, "run", 6)
    started: list[Any] = []
    monkeypatch.setattr(
        Trainer,
        "start_from",
        lambda self, weights, progress, call=Trainer.start_from: (
            started.append(progress.step), call(self, weights, progress),
        )[1],
    )  # fmt: skip
    run, said = train(workspace, "run", 12)
    assert started == [6]
    assert "its checkpoints are gone" in said
    assert "--keep-checkpoints last" in said
    record = run.manifest.summary["extended"][0]
    assert record["optimiser"] == "fresh"
    assert record["weights_of_step"] == 6
    assert run.manifest.summary["steps"] == 12
    assert run.manifest.summary["tokens"] > first.manifest.summary["tokens"]
    # Warmed up again though the rate is constant: the averages are.
    assert rates(run)[6:] == [0.0] + [0.01] * 5
    # The batches are those of steps 7 to 12.
    steps = [r["step"] for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == list(range(1, 13))
    losses = [r["loss"] for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "train"]
    whole, _ = train(workspace, "whole", 12)
    expected = [r["loss"] for r in read_metrics(whole.folder / "metrics.jsonl")
                if r["kind"] == "train"]  # fmt: skip
    assert losses[:7] == pytest.approx(expected[:7], rel=1e-6)
    assert losses[7:] != expected[7:]


@pytest.mark.parametrize("steps", [3, 6])
def test_no_more_than_it_has_done_changes_nothing(workspace: Workspace, steps: int):
    run, _ = train(workspace, "run", 6)
    if steps == 6:
        assert train(workspace, "run", 6)[0].manifest == run.manifest
        return
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="after 6 steps, and 3 are asked for: give more"):
        train(workspace, "run", steps)
    assert files == {path: path.read_bytes() for path in files}
    assert workspace.get("run", "run").manifest == run.manifest
    assert not extension.is_extended(run.folder)


def test_other_options_beside_the_length_are_still_others(workspace: Workspace):
    train(workspace, "run", 6)
    with pytest.raises(NameTaken, match=r"learning_rate 0\.01, now 0\.02; .*max_steps 6, now 12|"
                       r"max_steps 6, now 12; .*learning_rate 0\.01, now 0\.02"):  # fmt: skip
        train(workspace, "run", 12, learning_rate=0.02)


@pytest.mark.parametrize(("keep", "lost"), [(2, 7), ("last", 10)])
def test_killed_on_the_way_it_goes_on_the_same(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, keep: Any, lost: int
):
    """Before the first new checkpoint, and after it; the old model stays as long."""
    options = {"schedule": "linear", "checkpoint_every": 4, "keep_checkpoints": keep}
    for name in ("whole", "run"):
        train(workspace, name, 6, **options)
    whole, _ = train(workspace, "whole", 12, **options)
    before, step = weights(workspace.get("run", "run")), Trainer._step

    def broken(self: Trainer, *args: Any) -> Any:
        if self.progress.step == lost:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", broken)
        with pytest.raises(KeyboardInterrupt):
            train(workspace, "run", 12, **options)
    stopped = workspace.get("run", "run")
    assert weights(stopped) == before
    assert run_state(stopped, {}) == "interrupted"
    with pytest.raises(InputError, match="trained for longer"):
        find_model(workspace, "run")
    run, _ = train(workspace, "run", 12, **options)
    assert weights(run) == weights(whole)
    assert rates(run) == rates(whole)
    assert not extension.is_extended(run.folder)
    assert len(run.manifest.summary["extended"]) == 1


def test_one_that_diverges_leaves_the_run_as_it_was(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    before, _ = train(workspace, "run", 6, keep_checkpoints="last", checkpoint_every=1)
    step = Trainer._step

    def bad(self: Trainer, *args: Any) -> Any:
        if self.progress.step == 8:
            raise DivergedError("not finite")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", bad)
        with pytest.raises(DivergedError):
            train(workspace, "run", 12, keep_checkpoints="last", checkpoint_every=1)
    run = workspace.get("run", "run")
    assert run.manifest == before.manifest
    assert not extension.is_extended(run.folder)
    assert checkpoints(run) == ["step-00000006"]
    run.verify()
    find_model(workspace, "run")


def test_a_hint_where_no_name_is_given(workspace: Workspace):
    notes = Notes()
    for steps in (3, 5):
        layers = {**SHAPE, "training": {**TRAINING, "max_steps": steps}}
        config = pretraining.resolve("bert", "nano", layers)
        run, _ = pretrain(workspace, config, reporter=notes)
    assert run.manifest.name == "bert-stories-2"
    assert "run bert-stories is the same but for its length: --name bert-stories goes on" in (
        notes.text
    )


@pytest.mark.parametrize("keep", [2, "last"])
def test_a_finetuning_is_extended_and_keeps_its_best(
    tiny_workspace: Path, tmp_path: Path, labelled_file: Path, keep: Any
):
    root = tmp_path / "workspace"
    root.mkdir()
    for part in ("shards", "runs"):
        shutil.copytree(tiny_workspace / part, root / part)
    workspace = Workspace(root)

    def tune(epochs: int, name: str, **options: Any) -> tuple[Artefact, str]:
        training = {"epochs": epochs, "precision": "fp32", "schedule": "constant", "warmup": 0.0,
                    "keep_checkpoints": keep}  # fmt: skip
        config = finetuning.resolve("classify", {"training": training, "patience": 0, **options})
        notes = Notes()
        run, _ = finetune(workspace, "tiny", labelled_file, config, name=name, reporter=notes)
        return run, notes.text

    whole, _ = tune(4, "whole")
    first, _ = tune(2, "run")
    run, said = tune(4, "run")
    assert run.manifest.summary["steps"] == 2 * first.manifest.summary["steps"]
    assert run.manifest.summary["criterion"] <= first.manifest.summary["criterion"]
    if keep == "last":
        assert run.manifest.digest == whole.manifest.digest
    else:
        assert "its checkpoints are gone" in said
        tune(1, "added", method="lora")
        with pytest.raises(UsageError, match="merged with the rest"):
            tune(2, "added", method="lora")
        assert workspace.get("run", "added").finished


def test_the_record_is_json(workspace: Workspace):
    train(workspace, "run", 3)
    run, _ = train(workspace, "run", 4)
    value = json.loads((run.folder / "manifest.json").read_text())
    assert value["summary"]["extended"][0]["from_step"] == 3
