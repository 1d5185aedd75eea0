"""Checkpoints and best weights: damaged ones are passed over, none that is needed is deleted."""

from __future__ import annotations

import contextlib
import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmctl.errors import DivergedError, InputError, Interrupted
from llmctl.training import checkpoints
from llmctl.training.checkpoints import CheckpointStore, optimiser_tensors, restore_optimiser
from llmctl.workspace.manifests import QuickRecord
from llmctl.workspace.tensors import write_tensors


def tensors(
    model: nn.Module, optimiser: torch.optim.Optimizer | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    optimiser = optimiser or torch.optim.AdamW(model.parameters())
    return model.state_dict(), optimiser_tensors(model, optimiser)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=1)


def save(store: CheckpointStore, step: int, **state: object) -> None:
    model = nn.Linear(2, 2)
    store.save(step, *tensors(model), state)


def two(store: CheckpointStore) -> None:
    keeping = CheckpointStore(store.folder, keep=2)
    save(keeping, 20)
    save(keeping, 40)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_what_is_written_after_a_damaged_checkpoint_stays(store: CheckpointStore):
    two(store)
    flip(store.folder / "step-00000040" / "model.safetensors")
    notes: list[str] = []
    found = store.load_newest(notes.append)
    assert found is not None
    assert found.step == 20
    assert "step-00000040" in notes[0]
    assert store.steps() == [20, 40]
    save(store, 23)
    assert store.steps() == [23]
    again = store.load_newest(notes.append)
    assert again is not None
    assert again.step == 23


def rename_key(text: str) -> str:
    return text.replace('"size"', '"siza"', 1)


@pytest.mark.parametrize(
    "damage", [rename_key, lambda text: "[]", lambda text: "{}", lambda text: text[:30]]
)
def test_a_changed_manifest_is_damage(store: CheckpointStore, damage):
    two(store)
    path = store.folder / "step-00000040" / "manifest.json"
    path.write_text(damage(path.read_text()))
    found = store.load_newest(lambda note: None)
    assert found is not None
    assert found.step == 20


def test_with_nothing_whole_left_it_says_so(store: CheckpointStore):
    two(store)
    for path in store.folder.glob("step-*/manifest.json"):
        path.write_text("{}")
    with pytest.raises(InputError, match="--force"):
        store.load_newest(lambda note: None)


def test_best_weights_stay_while_a_checkpoint_calls_them_so(store: CheckpointStore):
    keeping = CheckpointStore(store.folder, keep=2)
    model = nn.Linear(2, 2)
    for step in (10, 20, 30):
        keeping.save_best(step, model.state_dict())
        save(keeping, step, best_step=min(step, 20))
    bests = sorted(path.name for path in store.folder.glob("best-*"))
    assert bests == ["best-00000020"]
    assert torch.equal(keeping.load_best(20)["weight"], model.weight)
    with pytest.raises(InputError, match="best-00000010"):
        keeping.load_best(10)
    flip(store.folder / "best-00000020" / "model.safetensors")
    with pytest.raises(InputError, match="has changed"):
        keeping.load_best(20)


def test_best_weights_later_than_the_checkpoint_gone_back_to_do_not_take_its_place(
    store: CheckpointStore,
):
    """Killed after a new best and before a checkpoint that knows it."""
    first, later = nn.Linear(2, 2), nn.Linear(2, 2)
    store.save_best(10, first.state_dict())
    save(store, 10, best_step=10)
    store.save_best(15, later.state_dict())
    assert json.loads((store.folder / "step-00000010/state.json").read_text())["best_step"] == 10
    assert torch.equal(store.load_best(10)["weight"], first.weight)
    save(store, 20, best_step=10)
    assert [path.name for path in store.folder.glob("best-*")] == ["best-00000010"]


# In the background


def tensors_slowly(seconds: float):
    def write(*arguments: Any) -> None:
        time.sleep(seconds)
        write_tensors(*arguments)

    return write


def full_disk(path: Path, tensors: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_what_training_does_meanwhile_is_not_in_the_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoints, "write_tensors", tensors_slowly(0.2))
    model = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2)).sum().backward()
    optimiser.step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = {n: t.clone() for n, t in checkpoints.optimiser_tensors(model, optimiser).items()}
    window = {"loss": [1.0, 1.0]}
    store.save(5, *tensors(model, optimiser), {"window": window}, wait=False)
    assert store.steps() == []
    optimiser.step()
    window["loss"][0] += 1.0
    store.wait()
    found = store.load_newest(pytest.fail)
    assert found is not None
    assert found.state == {"step": 5, "window": {"loss": [1.0, 1.0]}}
    for read, kept in zip(found.tensors({}), (before, moments), strict=True):
        assert read.keys() == kept.keys()
        assert all(torch.equal(read[name], kept[name]) for name in kept)
    assert not torch.equal(model.weight, before["weight"])


@pytest.mark.parametrize("next_call", ["save", "save_best", "wait"])
def test_a_failed_write_is_told_at_the_next_occasion_and_the_last_checkpoint_stays(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, next_call: str
):
    model = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    store.save(5, *tensors(model, optimiser), {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_tensors", full_disk)
        store.save(10, *tensors(model, optimiser), {}, wait=False)
        arguments = {
            "save": (15, *tensors(model, optimiser), {}),
            "save_best": (15, model.state_dict()),
            "wait": (),
        }
        with pytest.raises(OSError, match="No space left") as told:
            getattr(store, next_call)(*arguments[next_call])
    # The file that it was to be, not the hidden one that is gone.
    assert told.value.filename == str(store.folder / "step-00000010" / "model.safetensors")
    assert [path.name for path in store.folder.iterdir()] == ["step-00000005"]
    store.save(20, *tensors(model, optimiser), {})
    assert store.steps() == [20]


def test_best_weights_that_could_not_be_written_are_in_no_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
):
    model = nn.Linear(2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_tensors", full_disk)
        store.save_best(10, model.state_dict())
        store._writer._idle.wait()
    with pytest.raises(OSError, match="No space left"):
        store.save(10, *tensors(model), {"best_step": 10})
    assert store.steps() == []


@pytest.mark.parametrize("error", [None, InputError("bad data")])
def test_the_write_under_way_is_ended_also_after_an_error(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, error: Exception | None
):
    monkeypatch.setattr(checkpoints, "write_tensors", tensors_slowly(0.1))
    model = nn.Linear(2, 2)
    with contextlib.suppress(InputError), store:
        store.save(5, *tensors(model), {}, wait=False)
        if error is not None:
            raise error
    assert store.steps() == [5]


def test_who_stops_at_once_does_not_wait_and_leaves_nothing(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoints, "write_tensors", tensors_slowly(0.1))
    model = nn.Linear(2, 2)
    with contextlib.suppress(Interrupted), store:
        store.save(5, *tensors(model), {}, wait=False)
        raise Interrupted("a second signal", 15)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_take_no_checkpoints_place(
    store: CheckpointStore, value: float
):
    save(store, 5)
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[1, 0] = value
    with pytest.raises(DivergedError, match=r"step 10.*training\.learning_rate"):
        store.save(10, *tensors(model), {})
    assert store.steps() == [5]


def test_an_old_checkpoint_goes_in_one_step(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
):
    """Killed while it is being deleted, half of it is not met as a checkpoint."""
    save(store, 5)
    removed: list[str] = []
    monkeypatch.setattr(
        "llmctl.workspace.files.shutil.rmtree", lambda path, **_: removed.append(path.name)
    )
    save(store, 10)
    assert store.steps() == [10]
    assert ".step-00000005.partial" in removed
    monkeypatch.undo()
    assert (store.folder / ".step-00000005.partial").is_dir()
    store.clear_leftovers()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000010"]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"other/exp_avg": torch.zeros(2)},
        lambda tensors: tensors | {"weight/exp_avg": torch.zeros(4)},
        lambda tensors: tensors | {"weight/exp_avg": torch.zeros(2, 2, dtype=torch.int64)},
        lambda tensors: tensors | {"weight/step": torch.zeros(2)},
        lambda tensors: {k: v for k, v in tensors.items() if k != "bias/step"},
        lambda tensors: tensors | {"weight/max_exp_avg_sq": torch.zeros(2, 2)},
    ],
)
def test_the_optimiser_takes_up_nothing_but_its_own_state(change: Any):
    """Taken up unseen it would fail steps later, or begin anew for some weights."""
    model = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    saved = optimiser_tensors(model, optimiser)
    restore_optimiser(model, torch.optim.AdamW(model.parameters()), saved)
    with pytest.raises(ValueError, match="optimiser"):
        restore_optimiser(model, torch.optim.AdamW(model.parameters()), change(saved))


@pytest.mark.parametrize("state", ['{"step": 20}', '{"step": "40"}', "[40]", '"state"', "{}"])
def test_a_state_of_another_step_is_damage(store: CheckpointStore, state: str):
    """Its digest fits: whoever can write the one can write the other."""
    two(store)
    folder = store.folder / "step-00000040"
    (folder / "state.json").write_text(state)
    names = ["model.safetensors", "optimiser.safetensors", "state.json"]
    records = {name: r.model_dump() for name, r in QuickRecord.below(folder, names).items()}
    (folder / "manifest.json").write_text(json.dumps(records))
    found = store.load_newest(lambda note: None)
    assert found is not None
    assert found.step == 20
