"""Checkpoints and best weights: damaged ones are passed over, none that is needed is deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from llmctl.errors import InputError
from llmctl.training.checkpoints import CheckpointStore, optimiser_tensors


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=1)


def save(store: CheckpointStore, step: int, **state: object) -> None:
    model = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    store.save(step, model.state_dict(), optimiser_tensors(model, optimiser), state)


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
