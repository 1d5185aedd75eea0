"""Where and how a training computes: device, number format, kernels, threads.

They are chosen once, the same on all processes, and kept when a run goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError

from llmctl.errors import InputError, UsageError
from llmctl.parsing import first_fault
from llmctl.reporting.reporter import Reporter
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.processes import SINGLE_PROCESS, World
from llmctl.training.machine import THREADS_OPEN, cores
from llmctl.training.precision import (
    choose_compile,
    choose_device,
    choose_precision,
    matrix_rate,
)
from llmctl.workspace.manifests import Manifest


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes; settled at its start, kept when it goes on."""

    device: torch.device
    precision: str
    compiled: bool
    world: World = SINGLE_PROCESS
    """The processes that train together."""

    @property
    def matrix_flops(self) -> float:
        """Operations a second of its matrix products, measured; of this process's share."""
        dtype = torch.float32 if self.precision == "fp32" else torch.bfloat16
        return matrix_rate(self.device, dtype)

    def document(self) -> dict[str, Any]:
        """What the summary of a run tells of it."""
        return {
            "device": self.device.type,
            "precision": self.precision,
            "compiled": self.compiled,
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }


def choose_machine(
    config: TrainingConfig,
    world: World,
    expected_seconds: Callable[[Machine], float | None] = lambda machine: None,
) -> Machine:
    """What a training's configuration comes to here, the same on all processes: bf16, and
    compiling, where all would choose it.

    expected_seconds: of the training where it is not compiled; None where its shapes are no good to
    compile for. Raises UsageError for what is asked for and isn't here.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    low = world.all_reduce_min(int(precision != "fp32"))
    eager = Machine(device, precision if low else "fp32", False, world)
    seconds = expected_seconds(eager) if config.compile == "auto" else None
    compiled = choose_compile(config.compile, device, seconds)
    return replace(eager, compiled=bool(world.all_reduce_min(int(compiled))))


class _BegunOn(BaseModel):
    """What the summary of a run that isn't finished tells of its machine."""

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["fp32", "bf16", "fp8"]
    compiled: bool = False
    processes: int = 1
    threads: int = 0
    cpu: str = ""


def same_machine(manifest: Manifest, world: World, reporter: Reporter) -> Machine:
    """Where a run goes on: as it was begun. Raises UsageError if that device isn't here, InputError
    if the manifest does not tell."""
    try:
        begun_on = _BegunOn.model_validate(manifest.summary)
    except ValidationError as error:
        raise InputError(
            f"the manifest of run {manifest.name} does not tell on what it was begun "
            f"({first_fault(error)}); begin again with --force"
        ) from None
    try:
        device = choose_device(begun_on.device)
    except UsageError:
        raise UsageError(
            f"run {manifest.name} was begun on {begun_on.device}, which this machine does not "
            "have; go on where it was begun, or begin again with --force"
        ) from None
    _take_threads_of(manifest, world, reporter)
    compiled = begun_on.compiled and choose_compile("on", device, None)
    machine = Machine(device, begun_on.precision, compiled, world)
    now = machine.document()
    differing = [
        f"{key} {manifest.summary[key]}, now {now[key]}"
        for key in ("processes", "threads", "cpu")
        if manifest.summary.get(key, now[key]) != now[key]
    ]
    version = torch.__version__.partition("+")[0]
    if manifest.torch_version and manifest.torch_version.partition("+")[0] != version:
        differing.append(f"torch {manifest.torch_version}, now {torch.__version__}")
    if differing:
        reporter.note(
            f"{manifest.name} was begun with {'; '.join(differing)}: it goes on, but its results "
            "may differ from those of a run that never stopped: in the last bits, and in what "
            "dropout draws"
        )
    return machine


def _take_threads_of(manifest: Manifest, world: World, reporter: Reporter) -> None:
    """Compute with as many threads as the run was begun with, where the user has left that open
    and there are cores for them: its results are the same to the last bit then."""
    begun_with = manifest.summary.get("threads", 0)
    fits = 1 <= begun_with <= max(1, cores() // world.local_size)
    if THREADS_OPEN in os.environ and fits and begun_with != torch.get_num_threads():
        torch.set_num_threads(begun_with)
        reporter.note(
            f"{manifest.name} was begun with --threads {begun_with} and goes on with as many"
        )


@contextlib.contextmanager
def threads_of_its_own() -> Iterator[None]:
    """What a run sets its number of threads to ends with it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
