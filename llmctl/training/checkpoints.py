"""Checkpoints: everything that training needs to go on as if it had not stopped.

A checkpoint is a folder ``checkpoints/step-00000200`` of safetensors and JSON, published in one
step, with a manifest of digests. No pickle. Random states are not kept: every draw is a function
of (seed, step). A model that processes share out is written by all of them, each its shares
(``sharded``); whole or in shares, any number of processes can go on from it. Weights that were the
best at a validation lie beside them as ``best-00000200``, as long as a checkpoint that may be gone
back to calls them the best.

Training waits for a copy in memory only: digests and the disk take a thread of their own.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from llmctl.errors import DivergedError, InputError, Interrupted
from llmctl.parsing import read_json, read_json_object
from llmctl.training.background import BackgroundWriter
from llmctl.training.distributed import sharded
from llmctl.training.distributed.processes import shard_like, to_local
from llmctl.workspace.files import (
    clear_leftovers,
    errors_naming,
    hidden_sibling,
    published_folder,
    remove_folder,
    write_json,
)
from llmctl.workspace.manifests import QuickRecord, verify_files
from llmctl.workspace.tensors import read_tensors, write_tensors

DIGESTS = "manifest.json"
STATE = "state.json"
MODEL, OPTIMISER = "model", "optimiser"
"""Its parts: a file of that name, or a folder of shares."""
FULL_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    step: int
    folder: Path
    state: dict[str, Any]

    def tensors(self, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights and the optimiser's state, each shared out as the one of ``own`` weights is
        that it belongs to; where those are shared, all processes must call it."""
        return (
            self._read(MODEL, own.get),
            self._read(OPTIMISER, lambda name: own.get(name.rpartition("/")[0])),
        )

    def _read(self, part: str, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        shares = self.folder / part
        if shares.is_dir():
            return sharded.read(shares, like)
        full = read_tensors(self.folder / f"{part}{FULL_SUFFIX}")
        return {name: shard_like(value, like(name)) for name, value in full.items()}


class CheckpointStore:
    """The checkpoints of one run.

    As a context manager it ends the write under way: it waits, or after an interruption gives up.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep
        self._damaged: set[int] = set()
        self._besides: set[int] = set()
        self._writer = BackgroundWriter()
        self._copies: dict[str, Tensor] = {}
        self._group: sharded.CheckpointGroup | None = None

    def enable_sharded(self) -> None:
        """From now on each process writes its shares, and all must call ``save`` and ``wait``."""
        self._group = sharded.CheckpointGroup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
        elif isinstance(error, Interrupted) or not isinstance(error, Exception):
            self._writer.abandon()
        else:
            # The checkpoint is worth having whatever went wrong; what went wrong first is told.
            with contextlib.suppress(Exception):
                self.wait()

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        return self._steps("step")

    def _steps(self, what: str) -> list[int]:
        if not self.folder.is_dir():
            return []
        matches = (re.fullmatch(rf"{what}-(\d{{8}})", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimiser: Mapping[str, Tensor],
        state: Mapping[str, Any],
        *,
        wait: bool = True,
    ) -> None:
        """Write a checkpoint; then delete those found damaged, the oldest beyond the limit, and
        the best weights that no checkpoint calls the best any more.

        Without ``wait`` this returns once everything is copied; a failure is then raised by the
        next ``save``, ``save_best`` or ``wait``.
        """
        self.wait()
        parts = {
            MODEL: self._copied(MODEL, model),
            OPTIMISER: self._copied(OPTIMISER, optimiser),
        }
        kept_state = {"step": step, **copy.deepcopy(dict(state))}

        def check() -> None:
            # A sum takes a tenth of the time of asking each; one beyond fp32 is as bad.
            sums = (to_local(value).sum(dtype=torch.float32) for value in parts[MODEL].values())
            if not all(math.isfinite(float(total)) for total in sums):
                raise DivergedError(
                    f"step {step}: weights are not finite, so no checkpoint is written; the last "
                    "one is from before, lower training.learning_rate"
                )

        def write() -> None:
            if self._group is None:
                check()
                self._write(self._path(step), parts, kept_state)
                self._delete_old(step)
            else:
                self._group.run_on_all(check)
                self._write_shares(self._group, self._path(step), parts, kept_state)
                self._group.run_on_rank_0(lambda: self._delete_old(step))

        self._writer.submit(write)
        if wait:
            self.wait()

    def save_best(self, step: int, model: Mapping[str, Tensor]) -> None:
        """Write weights that are the best so far, without waiting for the disk."""
        self.wait()
        parts = {MODEL: self._copied(MODEL, model)}
        self._writer.submit(lambda: self._write(self._path(step, "best"), parts))

    def wait(self) -> None:
        """Wait until all is on the disk. Raises what writing it ended with."""
        self._writer.wait()

    def clear_leftovers(self) -> None:
        """Delete what a killed process left half-written."""
        clear_leftovers(self.folder)

    def _copied(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies in this machine's memory, which is kept for the next time."""
        copies = {}
        for name, tensor in tensors.items():
            place = f"{part}/{name}"
            held, share = self._copies.get(place), to_local(tensor.detach())
            if held is None or held.shape != share.shape or held.dtype != share.dtype:
                held = torch.empty(share.shape, dtype=share.dtype, pin_memory=share.is_cuda)
                self._copies[place] = held
            held.copy_(share, non_blocking=share.is_cuda)
            copies[name] = sharded.dtensor_like(tensor, held)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _write(
        self,
        target: Path,
        parts: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        with published_folder(target) as folder:
            for name, tensors in parts.items():
                self._writer.check()
                write_tensors(folder / f"{name}{FULL_SUFFIX}", tensors)
            if state is not None:
                write_json(folder / STATE, state)
            _write_digests(folder, QuickRecord.below(folder))
            self._writer.check()

    def _write_shares(
        self,
        together: sharded.CheckpointGroup,
        target: Path,
        parts: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
    ) -> None:
        """Each step is one that all processes come through, or none."""
        with errors_naming(target), contextlib.ExitStack() as publishing:
            together.run_on_rank_0(lambda: publishing.enter_context(published_folder(target)))
            folder = hidden_sibling(target)
            files: dict[str, QuickRecord] = {}
            for part, tensors in parts.items():
                names = together.write(folder / part, tensors)
                # Each reads again what it wrote itself.
                described = together.run_on_all(partial(_described, folder, names))
                for own in described:
                    files |= {k: QuickRecord.model_validate(v) for k, v in own.items()}

            def publish() -> None:
                write_json(folder / STATE, state)
                _write_digests(folder, {**files, **QuickRecord.below(folder, [STATE])})
                publishing.close()

            together.run_on_rank_0(publish)

    def _delete_old(self, step: int) -> None:
        # Later than where training went on, they would count as the newest for ever.
        whole = [old for old in self.steps() if old == step or old not in self._damaged]
        self._keep_only({*whole[-self._keep :], *(self._besides & set(whole))})
        self._damaged.clear()

    def _keep_only(self, kept: set[int]) -> None:
        """Delete all other checkpoints, then the weights that none of these calls the best."""
        for old in set(self.steps()) - kept:
            remove_folder(self._path(old))
        for old in set(self._steps("best")) - {self._best_of(step) for step in kept}:
            remove_folder(self._path(old, "best"))

    def keep_besides(self, step: int) -> None:
        """Keep a checkpoint beside the newest ones, if it is there."""
        self._besides.add(step)

    def remove_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                remove_folder(self._path(later))

    def tidy(self, *, keep_last: bool) -> None:
        """Delete what a finished run needs no more: everything, or all but the newest checkpoint
        and the weights that it calls the best."""
        self.wait()
        if not keep_last:
            remove_folder(self.folder)
        elif steps := self.steps():
            self._keep_only({steps[-1]})

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The weights that were the best at a step. Raises InputError if they aren't whole."""
        self.wait()
        folder = self._path(step, "best")
        _verify(folder, {f"{MODEL}{FULL_SUFFIX}"}, remedy="train again with --force")
        return read_tensors(folder / f"{MODEL}{FULL_SUFFIX}")

    def load_newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose digests hold; a damaged one is passed over with a warning,
        and deleted once training has gone on to the next checkpoint.

        Raises InputError if there are checkpoints but none is whole.
        """
        failure: InputError | None = None
        for step in reversed(self.steps()):
            try:
                return self._load(step)
            except InputError as error:
                if failure is not None or len(self.steps()) > 1:
                    warn(f"{error}; trying the checkpoint before it")
                failure = error
                self._damaged.add(step)
        if failure is not None:
            raise InputError(f"{failure}; no whole checkpoint is left, start again with --force")
        return None

    def _best_of(self, checkpoint: int) -> int | None:
        try:
            state = read_json(self._path(checkpoint) / STATE)
        except InputError:  # damaged: it will not be gone back to
            return None
        return state.get("best_step") if isinstance(state, dict) else None

    def _load(self, step: int) -> Checkpoint:
        folder = self._path(step)
        shares = {
            f"{part}/{path.name}"
            for part in (MODEL, OPTIMISER)
            for path in (folder / part).glob(f"*{FULL_SUFFIX}")
        }
        whole = {f"{part}{FULL_SUFFIX}" for part in (MODEL, OPTIMISER)}
        remedy = "this checkpoint can't be used"
        _verify(folder, {*(shares or whole), STATE}, remedy=remedy)
        state = read_json_object(folder / STATE, remedy)
        if state.get("step") != step:
            raise InputError(f"{folder / STATE} is not of step {step}; {remedy}")
        return Checkpoint(step, folder, state)

    def _path(self, step: int, what: str = "step") -> Path:
        return self.folder / f"{what}-{step:08d}"


def _described(folder: Path, names: list[str]) -> dict[str, Any]:
    """Files with their digests, as JSON has them."""
    return {name: file.model_dump() for name, file in QuickRecord.below(folder, names).items()}


def _write_digests(folder: Path, files: Mapping[str, QuickRecord]) -> None:
    write_json(folder / DIGESTS, {name: record.model_dump() for name, record in files.items()})


def _verify(folder: Path, names: set[str], *, remedy: str) -> None:
    """Raises InputError unless the folder has these files and they are as they were written."""
    path = folder / DIGESTS
    try:
        records = read_json(path)
        files = {name: QuickRecord.model_validate(value) for name, value in records.items()}
    except (InputError, AttributeError, ValidationError):
        files = {}
    if files.keys() != names:
        raise InputError(f"{path} is missing or damaged; {remedy}")
    verify_files(folder, files, remedy=remedy)


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name, as ``NAME/STATE``."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value
    return tensors


def restore_optimiser(
    model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of ``optimiser_tensors``. Raises ValueError for the state of another training."""
    parameters = dict(model.named_parameters())
    slots_of: dict[str, set[str]] = {}
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None or not parameter.requires_grad or not value.is_floating_point():
            raise ValueError(f"nothing is trained that the optimiser's {name} belongs to")
        if value.shape != (() if key == "step" else parameter.shape):
            raise ValueError(f"the optimiser's {name} has the shape {tuple(value.shape)}")
        slots_of.setdefault(parameter_name, set()).add(key)
        # A fused optimiser wants its step counter where the parameter is.
        optimiser.state[parameter][key] = value.to(parameter.device)
    for name, keys in slots_of.items():
        if keys not in ({"step", "exp_avg", "exp_avg_sq"}, {"momentum"}):
            raise ValueError(f"the optimiser has {', '.join(sorted(keys))} alone of {name}")
