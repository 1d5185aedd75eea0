"""A dry run: the first steps of a training on this very machine, to know what all of it takes.

The trainer is the real one on real batches: what is timed is what will run. The learning rate is
that of the first step, and what it writes lies in a folder that goes afterwards. Where several
processes train, all measure, by the main process's clock.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, quantiles
from typing import cast

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llmctl.reporting.reporter import Record
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.distributed.processes import SINGLE_PROCESS, World, to_local
from llmctl.training.machine import Watch
from llmctl.training.planning.memory import peak_bytes, resident_bytes, saved_bytes
from llmctl.training.progress import Progress
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import hidden_sibling, published_folder
from llmctl.workspace.locks import lock_path, writer_lock
from llmctl.workspace.manifests import FileRecord

WARM_UP = 2
"""Steps that are not counted: they allocate memory, choose kernels and fill caches."""
MIN_TIMED_STEPS = 3
MAX_TIMED_STEPS = 30
"""Steps that a short trial counts at the most."""
STEADY = 0.05
"""Steps are steady where the quartiles of their times are that near, as a share of the mean. Where
others compute on the machine they are not for half a minute, and the first seconds say little: off
by 12 % (one standard deviation) where ten say 8.5 % (measured for a minute's training)."""


@dataclass(frozen=True)
class Memory:
    """Bytes by kind at the fullest moment of a training."""

    process: int
    """Python, libraries and what was there before the model."""
    weights: int
    gradients: int
    optimiser: int
    activations: int
    """Kept on the way forward for the way back, as counted in a step; with the logits' gradients,
    which are made on the way forward."""
    rest: int
    """What else there was at the peak: results of single operations, buffers, the allocator's."""

    @property
    def peak(self) -> int:
        return sum(vars(self).values())


@dataclass
class StepTimings:
    """What was measured."""

    build_seconds: float = 0.0
    """Model, optimiser and validation batches made."""
    first_seconds: float = 0.0
    """The first step, in which a model that is compiled is compiled."""
    last_seconds: float = 0.0
    """The step before now."""
    step_seconds: list[float] = field(default_factory=list)
    """Seconds of each step after the warm-up."""
    step_tokens: list[float] = field(default_factory=list)
    validation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    export_seconds: float = 0.0
    memory: Memory | None = None
    others_cores: float = 0.0
    """Cores that other processes used meanwhile, on average; 0 where it isn't known."""
    own_cores: float = 0.0
    """Cores that this process used meanwhile; 0 where it isn't known."""

    @property
    def seconds_per_step(self) -> float:
        """The mean without the shortest and the longest tenth, at least one of each: a median is
        far off where a machine has two speeds."""
        ordered = sorted(self.step_seconds)
        cut = max(1, len(ordered) // 10)
        return fmean(ordered[cut:-cut] or ordered)

    @property
    def is_steady(self) -> bool:
        """Whether more steps would say the same."""
        low, _, high = quantiles(self.step_seconds, n=4)
        return high - low <= STEADY * self.seconds_per_step

    @property
    def tokens_per_step(self) -> float:
        """Padding not counted."""
        return sum(self.step_tokens) / len(self.step_tokens)

    def use_main_times(self, world: World) -> None:
        """Take the main process's times for one's own."""
        times = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        values = iter(world.broadcast([*times.values(), *self.step_seconds]))
        for name in times:
            setattr(self, name, next(values))
        self.step_seconds = list(values)

    @property
    def warm_up_seconds(self) -> float:
        """By how much the first step, which compiles, is longer than others."""
        return max(0.0, self.first_seconds - self.seconds_per_step)


@contextlib.contextmanager
def rehearsal_folder(workspace: Workspace, world: World = SINGLE_PROCESS) -> Iterator[Path]:
    """A hidden folder where runs lie, to rehearse a training in; gone after the block. The same for
    all processes, which must all be done with it then."""
    workspace.prepare("run")
    target = workspace.path("run", world.all_gather_json(f"rehearsal-{uuid.uuid4().hex[:8]}")[0])
    folder = hidden_sibling(target)
    if not world.is_main:
        world.barrier()
        yield folder
        return
    # Locked, it is not taken for what a crash left behind; and if this crashes, it is.
    with writer_lock(target):
        folder.mkdir(parents=True)
        world.barrier()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path(target).unlink(missing_ok=True)  # nobody else waits for this name


def time_steps(
    trainer: Trainer, seconds: float, *, least: int = MIN_TIMED_STEPS, give_up: float = math.inf
) -> StepTimings:
    """Steps alone, for about so many seconds but at least three after the warm-up. After
    ``give_up`` seconds the last step stands for all, the warm-up's too."""
    timings = StepTimings()
    start_time = time.perf_counter()
    with contextlib.closing(_records(trainer, timings)) as records:
        for _ in records:
            done = len(timings.step_seconds)
            (spent,) = trainer.world.broadcast([time.perf_counter() - start_time])
            if done >= MAX_TIMED_STEPS or (done >= least and spent >= seconds):
                break
            if spent >= give_up:
                if not done:
                    timings.step_seconds = [timings.last_seconds]
                    timings.step_tokens = [trainer.progress.tokens / trainer.progress.step]
                break
    timings.use_main_times(trainer.world)
    return timings


def measure_training(
    make: Callable[[CheckpointStore], Trainer],
    export: Callable[[nn.Module, Progress, Path], object],
    folder: Path,
    seconds: float,
    longest: float | None = None,
) -> StepTimings:
    """A whole small training: its steps for about so many seconds, then a validation, a checkpoint
    and the model folder.

    make: the trainer for a store; export: writes the model folder, as a run does. folder: where to
    write, the same for all processes; the caller removes it. longest: seconds to go on for while
    steps aren't steady.
    """
    longest = seconds if longest is None else longest
    store = CheckpointStore(folder / "checkpoints", keep=1)
    before = resident_bytes()
    start_time = time.perf_counter()
    trainer = make(store)
    built = time.perf_counter() - start_time
    timings = StepTimings(build_seconds=built)
    counted = 0
    watch = Watch.begin()
    start_time = time.perf_counter()
    records = _records(trainer, timings)
    while True:
        if counted == 0 and timings.first_seconds:  # the second warm-up step
            with saved_bytes(trainer.model.parameters()) as saved:
                record = next(records, None)
            counted = saved[0]
        else:
            record = next(records, None)
        if record is None:
            break
        if trainer.total_steps is None and len(timings.step_seconds) >= MIN_TIMED_STEPS:
            spent = time.perf_counter() - start_time
            enough = spent >= seconds and (spent >= longest or timings.is_steady)
            if any(trainer.world.broadcast([enough])):
                trainer.total_steps = trainer.progress.step + 1
    if watch is not None:
        timings.own_cores = watch.own_cores
        timings.others_cores = watch.others(trainer.world.local_size)
    memory = _memory(trainer, before, counted)
    start_time = time.perf_counter()
    model = trainer.unsharded_model()
    if model is not None:
        with published_folder(folder / "model") as hidden:
            export(model, trainer.progress, hidden)
        FileRecord.below(folder / "model")
    timings.export_seconds = time.perf_counter() - start_time
    timings.use_main_times(trainer.world)
    # What was freed before the model was made, and used again for it, counts once.
    process = max(0, min(before, before + peak_bytes() - memory.peak))
    memory = replace(memory, process=process)
    timings.memory = replace(memory, rest=max(0, peak_bytes() - memory.peak))
    return timings


def count_flops(trainer: Trainer) -> float:
    """Operations for each token of a step, counted one by one: no more than are done where weights
    are frozen. The model is not compiled."""
    with (
        FlopCounterMode(display=False) as counter,
        contextlib.closing(_records(trainer, StepTimings())) as records,
    ):
        next(records)
    return counter.get_total_flops() / trainer.progress.tokens


def _records(trainer: Trainer, timings: StepTimings) -> Generator[Record]:
    """What happens, with the time it took noted down; ends with the trainer's ``total_steps``."""
    changes = {"time_limit": None, "log_every": 1, "checkpoint_every": 1 << 40}
    trainer.config = trainer.config.replace(**changes)
    trainer.total_steps = None
    tokens = 0
    last = time.perf_counter()
    # Not left to the collector: the thread that makes batches ends with it.
    with contextlib.closing(cast(Generator[Record], trainer.run())) as records:
        for record in records:
            now = time.perf_counter()
            seconds, last = now - last, now
            if record.kind in ("train", "skipped"):
                timings.last_seconds = seconds
                if not timings.first_seconds:
                    timings.first_seconds = seconds
                elif record.step > WARM_UP:
                    timings.step_seconds.append(seconds)
                    timings.step_tokens.append(trainer.progress.tokens - tokens)
                tokens = trainer.progress.tokens
            elif record.kind == "validation":
                timings.validation_seconds = seconds
            elif record.kind == "checkpoint":
                timings.checkpoint_seconds = seconds
            yield record
            last = time.perf_counter()


def _memory(trainer: Trainer, before: int, activations: int) -> Memory:
    parameters = list(trainer.model.parameters())
    weights = sum(to_local(p).nbytes for p in parameters)
    gradients = sum(to_local(p).nbytes for p in parameters if p.requires_grad)
    optimiser = sum(
        to_local(value).nbytes
        for state in trainer.optimiser.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    return Memory(before, weights, gradients, optimiser, activations, rest=0)
