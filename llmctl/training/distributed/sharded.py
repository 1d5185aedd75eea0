"""Checkpoints of a model that processes share out: each writes its shares, and any number of
processes read them again, each what it needs.

The files are those of torch.distributed.checkpoint, which reads them. Its way to write them, and to
agree on who reads what, is not used: there the processes send each other pickles.

``shard-00001-model-00001-of-00001.safetensors`` is what the first process had, each share with the
place where it begins in the whole.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmctl.errors import error_of, record_of
from llmctl.training.distributed.meeting import refuse_strangers
from llmctl.training.distributed.processes import (
    PROCESS_GROUP_TIMEOUT,
    all_gather_json,
    is_dtensor,
    to_local,
)
from llmctl.workspace.tensors import write_tensors


class CheckpointGroup:
    """The processes that write, each in a thread of its own: what they say to each other there
    doesn't meet what training says."""

    def __init__(self) -> None:
        """All must call it."""
        self._group = dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT)
        refuse_strangers()
        self.rank = dist.get_rank()

    @property
    def is_main(self) -> bool:
        """Whether this process publishes what all have written."""
        return self.rank == 0

    def run_on_all(self, act: Callable[[], Any]) -> list[Any]:
        """What each process made of it, on all of them: see ``World.gathered``. Raises on all what
        one of them raised."""
        made, failure = None, None
        try:
            made = act()
        except Exception as error:
            failure = error
        told = [made, failure and record_of(failure)]
        results = all_gather_json(told, dist.get_world_size(self._group), self._group)
        if failure is not None:
            raise failure
        for _, record in results:
            if record is not None:
                raise error_of(record)
        return [value for value, _ in results]

    def run_on_rank_0(self, act: Callable[[], object]) -> None:
        """Let the main process alone do something; all wait for it."""

        def alone() -> None:
            if self.is_main:
                act()

        self.run_on_all(alone)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> list[str]:
        """Write the shares of tensors, each once; returns this process's files by their path from
        the folder above. What isn't shared the main process writes.

        Raises OSError on all processes where one of them meets it, as when the disk is full.
        """
        shares: dict[str, Tensor] = {}
        begins: dict[str, dict[str, list[int]]] = {}
        for name, tensor in tensors.items():
            begin = _begin_of_share(tensor) if is_dtensor(tensor) else [0] * tensor.dim()
            share = to_local(tensor)
            if begin is None or (share is tensor and not self.is_main):
                continue
            shares[name] = share
            begins[name] = {"saved_offsets": begin}
        path = folder / f"shard-{self.rank + 1:05d}-model-00001-of-00001.safetensors"
        metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(begins)}
        self.run_on_rank_0(lambda: folder.mkdir(parents=True, exist_ok=True))
        self.run_on_all(lambda: write_tensors(path, shares, metadata) if shares else None)
        return [f"{folder.name}/{path.name}"] if shares else []


def _begin_of_share(tensor: Tensor) -> list[int] | None:
    """Where in the whole a process's share begins; None where it has none, or where another
    process has the same to write."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(tensor, DTensor)
    mesh, placements = tensor.device_mesh, tensor.placements
    place = mesh.get_coordinate()
    assert place is not None
    copies = [at for at, kind in zip(place, placements, strict=True) if isinstance(kind, Replicate)]
    if any(copies) or tensor.to_local().numel() == 0:
        return None
    _, begin = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return list(begin)


def dtensor_like(tensor: Tensor, share: Tensor) -> Tensor:
    """A process's share that was copied from a tensor, as a tensor shared out like it; what isn't
    shared is its own share."""
    if not is_dtensor(tensor):
        return share
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    # The copy may be in another memory than the mesh is of, where from_local would move it to.
    return DTensor(share, tensor._spec, requires_grad=False)


def read(folder: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """All tensors of a folder, by name, each shared out as the one that ``like`` gives for its
    name is if they have one shape. Each process reads what it needs, and tells nobody."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    tensors = {}
    for name, kind in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(kind, TensorStorageMetadata)
        own, dtype = like(name), kind.properties.dtype
        if own is not None and is_dtensor(own) and own.shape == kind.size:
            tensors[name] = torch.empty_like(own, dtype=dtype)
        else:
            tensors[name] = torch.empty(kind.size, dtype=dtype)
    with warnings.catch_warnings():  # that each reads for itself is as meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors
