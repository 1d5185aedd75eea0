"""What every training stage does around its trainer: lock, resume, record, stop, finish."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from llmctl.errors import BusyError, DivergedError, InputError, Interrupted, UsageError
from llmctl.parsing import first_fault
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.run_log import LoggedReporter, told
from llmctl.training import extension
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.processes import ALONE, World, joined, lost_process
from llmctl.training.machine import THREADS_OPEN, cores
from llmctl.training.precision import (
    choose_compile,
    choose_device,
    choose_precision,
    matrix_rate,
)
from llmctl.training.profile import StepProfiler
from llmctl.training.progress import Progress
from llmctl.training.signals import signals_handled_by
from llmctl.training.trainer import NOT_FINITE, Trainer
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.commands import resume_command
from llmctl.workspace.files import (
    clear_leftovers,
    hidden_sibling,
    published_folder,
)
from llmctl.workspace.locks import lock_path, writer_lock
from llmctl.workspace.manifests import FileRecord, Manifest, now, write_manifest
from llmctl.workspace.metrics import Metrics, metric_lines
from llmctl.workspace.runs import METRICS, RunRecorder, SilentRecorder

MODEL, ADAPTER, PROFILE = "model", "adapter", "profile"
"""Folders of a run: what was trained, what LoRA added to it, and where the time of a step went."""


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes; settled at its start, kept when it goes on."""

    device: torch.device
    precision: str
    compiled: bool
    world: World = ALONE
    """The processes that train together."""

    @property
    def matrix_flops(self) -> float:
        """Operations a second of its matrix products, measured; of this process's share."""
        dtype = torch.float32 if self.precision == "fp32" else torch.bfloat16
        return matrix_rate(self.device, dtype)


PASSED_ON_SECONDS = 0.5 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0


class StopFlag:
    """Set by the first SIGINT or SIGTERM; the second stops at once, as does the first while there
    is nothing to save: until training asks, after its first step."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._since = -math.inf
        self.raised: Interrupted | None = None
        """What stopped at once: on its way through a library it may have become another error."""
        self._worth_saving = False

    def __call__(self) -> bool:
        self._worth_saving = True
        return self.signal_number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        # What a terminal sends to all of a job's processes torchrun passes on to its own once more.
        if number == self.signal_number and time.monotonic() - self._since < PASSED_ON_SECONDS:
            return
        second = self.signal_number is not None
        self.signal_number, self._since = number, time.monotonic()
        if second:
            self.raised = Interrupted("stopped at once by a second signal", number)
        elif not self._worth_saving:
            self.raised = Interrupted(
                f"stopped by {signal.Signals(number).name} before a step was done, so there was "
                "nothing to save; the same command begins where this one did",
                number,
            )
        if self.raised is not None:
            raise self.raised


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM set while the block runs."""
    flag = StopFlag()
    try:
        with signals_handled_by(flag.handle):
            yield flag
    except Exception as error:
        if flag.raised is not None and flag.raised is not error:
            raise flag.raised from error
        raise


@contextlib.contextmanager
def rehearsal_folder(workspace: Workspace, world: World = ALONE) -> Iterator[Path]:
    """A hidden folder where runs lie, to rehearse a training in; gone after the block. The same for
    all processes, which must all be done with it then."""
    workspace.prepare("run")
    target = workspace.path("run", world.gathered(f"rehearsal-{uuid.uuid4().hex[:8]}")[0])
    folder = hidden_sibling(target)
    if not world.is_main:
        world.wait()
        yield folder
        return
    # Locked, it is not taken for what a crash left behind; and if this crashes, it is.
    with writer_lock(target):
        folder.mkdir(parents=True)
        world.wait()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path(target).unlink(missing_ok=True)  # nobody else waits for this name


def run_training(
    workspace: Workspace,
    manifest: Manifest,
    existing: Artefact | None,
    config: TrainingConfig,
    *,
    prepare: Callable[[Machine, CheckpointStore, StopFlag], Trainer],
    export: Callable[[nn.Module, Progress, Path], dict[str, Any]],
    reporter: LoggedReporter,
    profile: bool = False,
    expected_seconds: Callable[[Machine], float | None] = lambda machine: None,
    judge: Callable[[dict[str, Any]], dict[str, Any]] = lambda summary: {},
    before: Manifest | None = None,
) -> Artefact:
    """Train a run to its end: start it, or go on from its newest whole checkpoint.

    prepare: builds the trainer. export: writes the folder of a model and returns figures for the
    manifest's summary. profile: trace some steps. expected_seconds: of the training where it is not
    compiled; None where its shapes are no good to compile for. judge: returns what the figures
    mean, to be kept with them. before: the manifest of ``existing`` where that is finished and is
    to be longer now. Raises Interrupted after the checkpoint that a signal asks for.

    A run of the same name that is to be replaced stays until the new one is ready to train.
    """
    workspace.prepare(manifest.kind)
    folder = workspace.path(manifest.kind, manifest.name)
    store = CheckpointStore(folder / "checkpoints", config.checkpoints_while_training)
    with (
        joined() as world,
        writer_lock(folder) if world.is_main else contextlib.nullcontext(),
        store,
        stop_on_signals() as stop,
        torch.random.fork_rng(devices=[]),
        _threads_of_its_own(),
    ):
        # Before anything is written, so that all have found the same.
        _check_all_see(folder, existing, world)
        if existing is None:
            device = choose_device(config.device)
            precision = choose_precision(config.precision, device)
            machine = agreed(Machine(device, precision, False, world))
            seconds = expected_seconds(machine) if config.compile == "auto" else None
            compiled = choose_compile(config.compile, device, seconds)
            machine = agreed(replace(machine, compiled=compiled))
            summary = {
                **manifest.summary,
                "device": device.type,
                "precision": machine.precision,
                "compiled": machine.compiled,
                "processes": world.size,
                "threads": torch.get_num_threads(),
                "cpu": torch.backends.cpu.get_cpu_capability(),
            }
            manifest = manifest.model_copy(update={"summary": summary})
            trainer = prepare(machine, store, stop)
            if world.is_main:
                with published_folder(folder) as hidden:
                    write_manifest(hidden, manifest)
            world.wait()
        else:
            if world.is_main:
                clear_leftovers(folder)
                store.clear_leftovers()
            manifest = extension.longer(manifest, before) if before else existing.manifest
            machine = _same_machine(manifest, world, reporter)
            if before is not None:  # before a word is written of what may be refused
                trainer = prepare(machine, store, stop)
                manifest = extension.begin(folder, manifest, before, trainer, store, reporter.note)
        recorder = RunRecorder(folder) if world.is_main else SilentRecorder(folder)
        if world.is_main:
            reporter.attach(folder)
        try:
            if existing is not None:
                recorder.update(state="running", message=None)
            if existing is not None and before is None:
                trainer = prepare(machine, store, stop)
            if profile and world.is_main:
                trainer.profiler = StepProfiler(folder / PROFILE, reporter.note)
            try:
                _train(folder, manifest, trainer, store, recorder, stop, export, judge, reporter)
            finally:
                trainer.close()
        except BaseException as error:
            lost = lost_process(error, world)
            cause = stop.raised or lost or error
            state = "interrupted" if isinstance(cause, Interrupted) else "failed"
            with contextlib.suppress(OSError):
                reporter.ended(cause)
                recorder.update(
                    state=state,
                    message=str(cause) or type(cause).__name__,
                    exit_code=getattr(cause, "exit_code", 1),
                )
                diverged = isinstance(cause, DivergedError)
                if diverged and world.is_main and extension.is_extended(folder):
                    extension.put_back(folder, store, manifest, reporter.note)
            if lost is not None and cause is lost:
                raise lost from error
            raise
    return workspace.get(manifest.kind, manifest.name)


def _train(
    folder: Path,
    manifest: Manifest,
    trainer: Trainer,
    store: CheckpointStore,
    recorder: RunRecorder,
    stop: StopFlag,
    export: Callable[[nn.Module, Progress, Path], dict[str, Any]],
    judge: Callable[[dict[str, Any]], dict[str, Any]],
    reporter: LoggedReporter,
) -> None:
    world = trainer.world
    checkpoint = store.load_newest(reporter.note)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    if extension.is_extended(folder):
        step = None if checkpoint is None else checkpoint.step
        extension.restore(folder, manifest, trainer, store, step)
    if checkpoint is not None:
        reporter.note(f"going on with {manifest.name} from step {checkpoint.step}")
    recorder.start(
        step=trainer.progress.step,
        total_steps=trainer.total_steps,
        look_due=trainer.progress.look_due,
    )
    for record in trainer.run():
        if record.kind in ("train", "validation", "skipped"):
            recorder.record({"kind": record.kind, "step": record.step, **record.values})
            reporter.metrics(
                record.kind,
                record.step,
                trainer.total_steps,
                record.values,
                seconds=trainer.config.time_limit,
            )
        if record.kind == "skipped":
            norm = record.values["gradient_norm"]
            spike = math.isfinite(norm)
            why = f"the gradient was a spike ({norm:.3g})" if spike else NOT_FINITE
            reporter.note(f"step {record.step}: {why}; step skipped")
        recorder.update(
            step=record.step,
            share_done=trainer.share_done(),
            elapsed=trainer.progress.elapsed,
            seconds_per_step=trainer.progress.elapsed / max(trainer.progress.step, 1),
        )
        if record.kind == "stopped":
            total = f" of {trainer.total_steps}" if trainer.total_steps else ""
            number = stop.signal_number
            assert number is not None
            if record.step in (steps := store.steps()):
                saved = " after writing a checkpoint"
            else:  # what came of a gradient that isn't finite is no good to go on from
                saved = f"; the last checkpoint is of step {steps[-1] if steps else 0}"
            raise Interrupted(
                f"stopped by {signal.Signals(number).name} at step {record.step}{total}{saved}; "
                f"go on with: {resume_command(manifest)}",
                number,
            )
    if trainer.total_steps is None and trainer.progress.step == 1 and trainer.config.warmup:
        reporter.note(
            "the time was over after one step, at whose beginning the learning rate was still 0: "
            "the weights are as they were; give a longer training.time_limit"
        )
    last = _validation(folder)
    loss = last.get("loss", 0.0)
    if loss is None or not math.isfinite(loss):
        raise DivergedError(
            f"run {manifest.name} ended with a validation loss that is not finite, so no model is "
            "written; train again with --force and a lower training.learning_rate"
        )
    model = trainer.whole_model()
    if model is None:
        world.wait()
        return
    with published_folder(folder / MODEL) as model_folder:
        figures = export(model, trainer.progress, model_folder)
    kept = _validation(folder, figures.get("best_step"))
    files = {
        f"{part}/{name}": record
        for part in (MODEL, ADAPTER)
        if (folder / part).is_dir()
        for name, record in FileRecord.below(folder / part).items()
    }
    summary = {
        **manifest.summary,
        "steps": trainer.progress.step,
        "tokens": trainer.progress.tokens,
        "seconds": round(trainer.progress.elapsed, 3),
        **({"validation": kept} if kept else {}),
        **figures,
    }
    summary |= judge(summary)
    recorder.update(state="finished", step=trainer.progress.step, share_done=1.0)
    # Last, as nobody tidies up behind a finished run.
    write_manifest(
        folder,
        manifest.model_copy(update={"finished": now(), "files": files, "summary": summary}),
    )
    reporter.tell(f"finished after {trainer.progress.step} steps: {told({**summary, **kept})}")
    (folder / extension.BEFORE).unlink(missing_ok=True)
    if trainer.config.keep_checkpoints != "all":
        store.tidy(keep_last=trainer.config.keep_checkpoints == "last")
    world.wait()


def finished_before(run: Artefact) -> Artefact:
    """A run that is up to date, without what a kill in tidying up behind its last word left half
    deleted; one that somebody holds, or that may not be written, stays as it is."""
    with contextlib.suppress(BusyError, OSError), writer_lock(run.folder):
        clear_leftovers(run.folder)
        clear_leftovers(run.folder / "checkpoints")
    return run


def _validation(folder: Path, step: int | None = None) -> dict[str, float | None]:
    """The last look, or that at a step, from the log: a run that goes on at its very end measures
    nothing more."""
    last: Metrics = {}
    for _, record in metric_lines(folder / METRICS):
        if record.get("kind") == "validation" and (not step or record["step"] == step):
            last = record
    return {k: v for k, v in last.items() if k not in ("kind", "step")}


def _check_all_see(folder: Path, existing: Artefact | None, world: World) -> None:
    """Raises InputError unless all processes have found the same run, or none."""
    found = world.total([float(existing is not None)])[0]
    if found not in (0, world.size):
        raise InputError(
            f"{folder} is there for {found:.0f} of {world.size} processes: the workspace must lie "
            "on a file system that all machines share"
        )


def agreed(machine: Machine) -> Machine:
    """The same choices on all processes: bf16, and compiling, where all would choose it."""
    precision, compiled, world = machine.precision, machine.compiled, machine.world
    low = world.least(int(precision != "fp32"))
    return replace(
        machine,
        precision=precision if low else "fp32",
        compiled=bool(world.least(int(compiled))),
    )


class _BegunOn(BaseModel):
    """What the summary of a run that isn't finished tells of its machine."""

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["fp32", "bf16", "fp8"]
    compiled: bool = False
    processes: int = 1
    threads: int = 0
    cpu: str = ""


def _same_machine(manifest: Manifest, world: World, reporter: Reporter) -> Machine:
    """Where a run goes on: as it was begun. Raises UsageError if that device isn't here, InputError
    if the manifest does not tell."""
    try:
        _BegunOn.model_validate(manifest.summary)
    except ValidationError as error:
        raise InputError(
            f"the manifest of run {manifest.name} does not tell on what it was begun "
            f"({first_fault(error)}); begin again with --force"
        ) from None
    begun_on = manifest.summary["device"]
    try:
        device = choose_device(begun_on)
    except UsageError:
        raise UsageError(
            f"run {manifest.name} was begun on {begun_on}, which this machine does not have; go on "
            "where it was begun, or begin again with --force"
        ) from None
    _take_threads_of(manifest, world, reporter)
    here = {
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    differing = [
        f"{key} {manifest.summary[key]}, now {value}"
        for key, value in here.items()
        if manifest.summary.get(key, value) != value
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
    compiled = choose_compile("on", device, None) if manifest.summary.get("compiled") else False
    return Machine(device, manifest.summary["precision"], compiled, world)


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
def _threads_of_its_own() -> Iterator[None]:
    """What a run sets its number of threads to ends with it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
