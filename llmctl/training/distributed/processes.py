"""Several processes that train one model, or divide its work among them: who they are, what they
tell each other, and how the model lies on them.

They are started by torchrun or by ``--nproc``, which tell each its rank through the environment.
Each computes the gradient of some rows of every batch; a step is that of the whole batch, however
many they are.

- ``ddp``: each holds the whole model, and gradients are summed while the backward pass goes on
  (Li et al. 2020, "PyTorch Distributed").
- ``fsdp``: each holds a share of every weight, gradient and moment, and the weights of a block
  are put together as it is computed (Zhao et al. 2023; Rajbhandari et al. 2019, ZeRO-3).
- ``hybrid``: shares within a machine, copies across machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.utils.checkpoint import checkpoint

from llmctl.errors import LlmctlError, LostProcess, UsageError, error_of, record_of
from llmctl.models.spec import layers_of
from llmctl.parsing import parse_json
from llmctl.training.batches import Objective
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.meeting import STORE, refuse_strangers
from llmctl.training.signals import signals_handled_by

T = TypeVar("T")
Answered = TypeVar("Answered")

PROCESS_GROUP_TIMEOUT = timedelta(minutes=30)
"""How long processes wait for one another: as long as a model takes to be written."""


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its machine."""
    local_size: int = 1
    """Processes on its machine."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, and speaks."""
        return self.rank == 0

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sums of each process's values, the same on all."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def broadcast(self, values: Sequence[float]) -> list[float]:
        """The main process's values, on all: what depends on a clock is to be the same on them."""
        return self.all_reduce_sum([value if self.is_main else 0.0 for value in values])

    def all_reduce_min(self, value: int) -> int:
        """The least of each process's values."""
        if self.size == 1:
            return value
        least = torch.tensor(value)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def barrier(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))

    def all_gather_json(self, value: Any) -> list[Any]:
        """Each process's value, by rank, the same on all: a value as JSON has them, or made of
        dataclasses, which arrive as their fields."""
        if self.size == 1:
            return [value]
        return all_gather_json(value, self.size)

    def all_gather_rows(self, rows: Tensor) -> tuple[Tensor, int]:
        """Each process's rows (n, …), of which there may be none, one behind another by rank; and
        the place of this one's first. No gradient goes through."""
        if self.size == 1:
            return rows.detach(), 0
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)]))
        sizes = [int(count) for count in counts]
        most = max(sizes)
        own = rows.new_zeros(most, *rows.shape[1:])
        own[: len(rows)] = rows.detach()
        buffers = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(buffers, own)
        parts = [buffer[:size] for buffer, size in zip(buffers, sizes, strict=True)]
        return torch.cat(parts), sum(sizes[: self.rank])

    def map_sharded(
        self,
        items: Iterable[T],
        answer: Callable[[Iterable[T], int], Iterable[Answered]],
        *,
        block: int,
        kind: type[Answered],
    ) -> Iterator[Answered]:
        """An answer to each item, in their order and the same on all processes, which answer a
        block each in turn.

        answer: is given some items that follow one another, and the first one's number; one
        process alone gives it all. kind: the type of an answer, which the others' are read as.
        Raises what any process's answering raised, behind the answers before it.
        """
        if self.size == 1:
            yield from answer(items, 0)
            return
        stream, first = iter(items), 0
        read = TypeAdapter(list[kind]).validate_python  # type: ignore[valid-type]
        while True:
            own: list[T] = []
            begin = 0
            for rank in range(self.size):
                taken = list(islice(stream, block))
                if rank == self.rank:
                    own, begin = taken, first
                first += len(taken)
                if not taken:
                    break
            answers: list[Answered] = []
            failure = None
            try:
                answers.extend(answer(own, begin) if own else [])
            except LlmctlError as error:
                failure = error
            for part, told in self.all_gather_json([answers, failure and record_of(failure)]):
                yield from read(part)
                if told is not None:
                    raise error_of(told)
            if len(taken) < block:
                return


SINGLE_PROCESS = World()


def all_gather_json(value: Any, size: int, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Each process's value, by rank. What is sent is JSON, in tensors: PyTorch's own way to send
    objects reads them with pickle, which runs whatever whoever is at the other end wants."""
    text = bytearray(json.dumps(value, default=_plain).encode())
    data = torch.frombuffer(text, dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(data)]), group=group)
    longest = int(max(lengths))
    own = nn.functional.pad(data, (0, longest - len(data)))
    buffers = [torch.empty(longest, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(buffers, own, group=group)
    return [
        parse_json(tensor[: int(length)].numpy().tobytes())
        for tensor, length in zip(buffers, lengths, strict=True)
    ]


def _plain(value: object) -> Any:
    """An array or a dataclass as JSON can have it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} is nothing that processes tell each other")


def world_of_environment() -> World:
    """Who this process is, by what torchrun says."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in names):
        return SINGLE_PROCESS
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    return World(rank, size, local_rank, local_size)


def get_world() -> World:
    """Who this process is among those that it is joined with: see ``process_group``."""
    return world_of_environment() if dist.is_initialized() else SINGLE_PROCESS


@contextlib.contextmanager
def process_group() -> Iterator[World]:
    """Within, this process is joined with the others, if torchrun started it among others."""
    world = world_of_environment()
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # At once: a handler would wait for the others.
    with signals_handled_by(signal.SIG_DFL):
        dist.init_process_group(
            backend,
            store=_store(world),
            rank=world.rank,
            world_size=world.size,
            timeout=PROCESS_GROUP_TIMEOUT,
        )
    try:
        refuse_strangers()
        yield world
    except RuntimeError as error:
        if (lost := lost_process(error, world)) is not None:
            raise lost from error
        raise
    finally:
        dist.destroy_process_group()


def _store(world: World) -> Store:
    """Where the processes find each other."""
    if STORE in os.environ:
        return dist.FileStore(os.environ[STORE], world.size)  # type: ignore[attr-defined]
    store, _, _ = next(rendezvous("env://", timeout=PROCESS_GROUP_TIMEOUT))
    # torchrun keeps one store over its restarts, where the lost's addresses would be found.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt-{attempt}", store)


DISCONNECT_MESSAGES = ("connection closed by peer", "connection reset", "timed out", "nccl", "gloo")
"""Where the libraries below say that another process can't be reached."""


def lost_process(error: BaseException, world: World) -> LostProcess | None:
    """What to say where the others can't be reached any more; None if it is something else."""
    if world.size == 1 or not isinstance(error, RuntimeError):
        return None
    sign = next((sign for sign in DISCONNECT_MESSAGES if sign in str(error).lower()), None)
    if sign is None:
        return None
    return LostProcess(
        f"process {world.rank} lost the others of this training ({sign}); run the command again, "
        "it goes on from the last checkpoint"
    )


def distribute(
    objective: Objective, config: TrainingConfig, world: World, device: torch.device
) -> nn.Module:
    """The loss over the processes; its model is moved to the device in place, and shared out by
    ``fsdp``.

    Raises UsageError for what doesn't go together.
    """
    if config.parallel == "ddp" or world.size == 1:
        objective.to(device)
    if config.parallel != "ddp":
        if world.size == 1:
            raise UsageError(
                f"training.parallel {config.parallel} shares a model among processes, and this is "
                "one; start several with --nproc or torchrun, or leave it out"
            )
        if config.cpu_offload and device.type == "cpu":
            raise UsageError("training.cpu_offload is for GPUs, and this trains on the processor")
        _shard(objective, config, world, device)
        return objective
    if config.cpu_offload:
        raise UsageError("training.cpu_offload goes with training.parallel=fsdp or hybrid")
    if world.size == 1:
        return objective
    with warnings.catch_warnings():  # its successor is not in every version that we run on
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return nn.parallel.DistributedDataParallel(
            objective,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )


def _shard(
    objective: Objective, config: TrainingConfig, world: World, device: torch.device
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    shape: tuple[int, ...] = (world.size,)
    names: tuple[str, ...] = ("shard",)
    if config.parallel == "hybrid":
        shape, names = (world.size // world.local_size, world.local_size), ("copy", "shard")
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    refuse_strangers()
    offload = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    share = partial(fully_shard, mesh=mesh, offload_policy=offload)
    for layer in layers_of(objective):
        share(layer)
    share(objective)


def recompute_activations(model: nn.Module) -> None:
    """Keep only each block's input for the backward pass, and compute the block again there
    (Chen et al. 2016): a third more work, and memory for one block instead of all."""
    for layer in layers_of(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether each process holds a share of a tensor."""
    # Its class takes a second to import, which only sharing it is worth.
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor put together from its shares; all processes must call it."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def to_local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, pattern: Tensor | None) -> Tensor:
    """This process's share of a whole tensor, as ``pattern`` lies."""
    if pattern is None or not is_dtensor(pattern) or tensor.shape != pattern.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    # All have read the same: nothing needs to be sent.
    return distribute_tensor(
        tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None
    )
