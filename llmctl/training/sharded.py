"""Checkpoints of a model that processes share out: each writes its shares, and any number of
processes read them again, each what it needs (torch.distributed.checkpoint).

``shard-00001-model-00001-of-00001.safetensors`` is what the first process had, each share with the
place where it begins in the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from llmctl.training.distributed import PATIENCE, is_shared

T = TypeVar("T")


class Together:
    """The processes that write, each in a thread of its own: what they say to each other there
    doesn't meet what training says."""

    def __init__(self) -> None:
        """All must call it."""
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.rank = dist.get_rank()

    @property
    def is_main(self) -> bool:
        """Whether this process publishes what all have written."""
        return self.rank == 0

    def each(self, act: Callable[[], T]) -> list[T]:
        """What each process made of it, on all of them. Raises on all what one of them raised."""
        made: T | Exception
        try:
            made = act()
        except Exception as error:
            made = error
        found: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(found, made, group=self._group)
        for value in found:
            if isinstance(value, Exception):
                raise value
        return found

    def main(self, act: Callable[[], T]) -> T | None:
        """Let the main process alone do something; all wait for it."""
        return self.each(lambda: act() if self.is_main else None)[0]

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> list[str]:
        """Write the shares of tensors, each once; returns this process's files by their path from
        the folder above.

        Raises OSError on all processes where one of them meets it, as when the disk is full.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            save(dict(tensors), storage_writer=writer, process_group=self._group)
        except CheckpointException as failed:
            raise next(error for error, _ in failed.failures.values()) from failed
        own = folder.glob(f"shard-{self.rank + 1:05d}-*")
        return [f"{folder.name}/{path.name}" for path in own]


def placed_as(tensor: Tensor, share: Tensor) -> Tensor:
    """A process's share that was copied from a tensor, as a tensor shared out like it; what isn't
    shared is its own share."""
    if not is_shared(tensor):
        return share
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    # The copy may be in another memory than the mesh is of, where from_local would move it to.
    return DTensor(share, tensor._spec, requires_grad=False)


def read(folder: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """All tensors of a folder, by name, each shared out as the one that ``like`` gives for its
    name is if they have one shape. Where those are shared, all processes must call it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    tensors = {}
    for name, kind in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(kind, TensorStorageMetadata)
        own, dtype = like(name), kind.properties.dtype
        if own is not None and is_shared(own) and own.shape == kind.size:
            tensors[name] = torch.empty_like(own, dtype=dtype)
        else:
            tensors[name] = torch.empty(kind.size, dtype=dtype)
    with warnings.catch_warnings():  # that one process alone reads them is as meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader)
    return tensors
