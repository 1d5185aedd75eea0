"""Checkpoints written in shares: by one process here, by several in tests/stages."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from llmctl.errors import DivergedError, InputError
from llmctl.training.checkpoints import CheckpointStore, optimiser_tensors, restore_optimiser
from llmctl.training.distributed import sharded
from llmctl.training.distributed.processes import to_local


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(*, shared: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))
    if shared:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 5)).sum().backward()
    optimiser.step()
    return model, optimiser


def tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    return [model.state_dict(), optimiser_tensors(model, optimiser)]


@pytest.fixture
def store(tmp_path: Path, alone: None) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    store.enable_sharded()
    return store


@pytest.mark.parametrize("shared", [False, True])
def test_shares_are_read_whole_and_in_shares(store: CheckpointStore, shared: bool):
    store.save(5, *tensors(*trained(shared=True)), {"tokens": 7}, wait=False)
    store.wait()
    folder = store.folder / "step-00000005"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "model", "optimiser", "state.json",
    ]  # fmt: skip
    found = CheckpointStore(store.folder, keep=1).load_newest(pytest.fail)
    assert found is not None
    assert found.state == {"step": 5, "tokens": 7}
    model, optimiser = trained(shared=shared)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    weights, moments = found.tensors(model.state_dict())
    model.load_state_dict(weights)
    optimiser.state.clear()
    restore_optimiser(model, optimiser, moments)
    expected = tensors(*trained(shared=False))
    for ours, theirs in zip(tensors(model, optimiser), expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert hasattr(value, "full_tensor") == (shared and value.dim() > 0), name
            assert torch.equal(to_local(value), theirs[name]), name


def test_whole_ones_are_shared_out(tmp_path: Path, alone: None):
    store = CheckpointStore(tmp_path, keep=1)
    expected = tensors(*trained(shared=False))
    store.save(5, *expected, {})
    found = store.load_newest(pytest.fail)
    assert found is not None
    model, _ = trained(shared=True)
    for ours, theirs in zip(found.tensors(model.state_dict()), expected, strict=True):
        for name, value in theirs.items():
            assert hasattr(ours[name], "full_tensor") == (value.dim() > 0), name
            assert torch.equal(to_local(ours[name]), value)


def test_a_full_disk_leaves_the_last_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
):
    store.save(5, *tensors(*trained(shared=True)), {})

    def fail(*rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharded, "write_tensors", fail)
    store.save(10, *tensors(*trained(shared=True)), {}, wait=False)
    with pytest.raises(OSError, match="No space left") as caught:
        store.wait()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename
    assert [path.name for path in store.folder.iterdir()] == ["step-00000005"]


def test_weights_that_are_not_finite_are_not_written(store: CheckpointStore):
    model, optimiser = trained(shared=True)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError):
        store.save(5, *tensors(model, optimiser), {})
    assert store.steps() == []


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_share_is_found(store: CheckpointStore, damage: str):
    store.save(5, *tensors(*trained(shared=True)), {})
    (share,) = (store.folder / "step-00000005" / "optimiser").iterdir()
    if damage == "cut":
        share.write_bytes(share.read_bytes()[:-1])
    else:
        share.unlink()
    with pytest.raises(InputError, match="no whole checkpoint"):
        store.load_newest(lambda text: None)
