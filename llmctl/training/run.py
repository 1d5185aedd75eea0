"""What every training stage does around its trainer: lock, resume, record, stop, finish."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmctl.errors import BusyError, DivergedError, InputError, Interrupted
from llmctl.reporting.reporter import Record
from llmctl.reporting.run_log import LoggedReporter, told
from llmctl.training import extension
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.device import Machine, choose_machine, same_machine, threads_of_its_own
from llmctl.training.distributed.processes import World, lost_process, process_group
from llmctl.training.profile import StepProfiler
from llmctl.training.progress import Progress
from llmctl.training.signals import StopFlag, stop_on_signals
from llmctl.training.trainer import NOT_FINITE, Trainer
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.commands import resume_command
from llmctl.workspace.files import clear_leftovers, published_folder
from llmctl.workspace.locks import writer_lock
from llmctl.workspace.manifests import FileRecord, Manifest, now, write_manifest
from llmctl.workspace.metrics import Metrics, metric_lines
from llmctl.workspace.runs import METRICS, RunRecorder, SilentRecorder

MODEL, ADAPTER, PROFILE_FOLDER = "model", "adapter", "profile"
"""Folders of a run: what was trained, what LoRA added to it, and where the time of a step went."""

Ready = Callable[[Path, Machine], None]
Prepare = Callable[[Machine, CheckpointStore, StopFlag], Trainer]
ExportModel = Callable[[nn.Module, Progress, Path], dict[str, Any]]
Judge = Callable[[dict[str, Any]], dict[str, Any]]


def run_training(
    workspace: Workspace,
    manifest: Manifest,
    existing: Artefact | None,
    config: TrainingConfig,
    *,
    prepare: Prepare,
    ready: Ready = lambda folder, machine: None,
    export: ExportModel,
    reporter: LoggedReporter,
    profile: bool = False,
    expected_seconds: Callable[[Machine], float | None] = lambda machine: None,
    judge: Judge = lambda summary: {},
    before: Manifest | None = None,
) -> Artefact:
    """Train a run to its end: start it, or go on from its newest whole checkpoint.

    prepare: builds the trainer. ready: computes what the steps need besides, once the run's folder
    is there. export: writes the folder of a model and returns figures for the
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
        process_group() as world,
        writer_lock(folder) if world.is_main else contextlib.nullcontext(),
        store,
        stop_on_signals() as stop,
        torch.random.fork_rng(devices=[]),
        threads_of_its_own(),
    ):
        # Before anything is written, so that all have found the same.
        _check_all_see(folder, existing, world)
        run = _Run(folder, manifest, world, store, stop, reporter, prepare, ready)
        if existing is None:
            make_trainer = run.begin(choose_machine(config, world, expected_seconds))
        else:
            make_trainer = run.take_up(existing, before)
        if world.is_main:
            reporter.attach(folder)
        with run.failures_recorded():
            if existing is not None:
                run.recorder.update(state="running", message=None)
            trainer = make_trainer()
            if profile and world.is_main:
                trainer.profiler = StepProfiler(folder / PROFILE_FOLDER, reporter.note)
            with contextlib.closing(trainer):
                run.train(trainer)
                run.finish(trainer, export, judge)
    return workspace.get(manifest.kind, manifest.name)


@dataclass
class _Run:
    """A run while it is trained."""

    folder: Path
    manifest: Manifest
    world: World
    store: CheckpointStore
    stop: StopFlag
    reporter: LoggedReporter
    prepare: Prepare
    ready: Ready

    def begin(self, machine: Machine) -> Callable[[], Trainer]:
        """Publish a new run, once its trainer is made; returns what gives that."""
        self.machine = machine
        summary = {**self.manifest.summary, **machine.document()}
        self.manifest = self.manifest.model_copy(update={"summary": summary})
        trainer = self.prepare(machine, self.store, self.stop)
        if self.world.is_main:
            with published_folder(self.folder) as hidden:
                write_manifest(hidden, self.manifest)
        self.world.barrier()
        return lambda: trainer

    def take_up(self, existing: Artefact, before: Manifest | None) -> Callable[[], Trainer]:
        """Go on with a run, to where it was to end or for longer; returns what makes its
        trainer."""
        if self.world.is_main:
            clear_leftovers(self.folder)
            self.store.clear_leftovers()
        self.manifest = extension.longer(self.manifest, before) if before else existing.manifest
        self.machine = machine = same_machine(self.manifest, self.world, self.reporter)
        make_trainer = partial(self.prepare, machine, self.store, self.stop)
        if before is None:
            return make_trainer
        trainer = make_trainer()  # before a word is written of what may be refused
        self.manifest = extension.begin(
            self.folder, self.manifest, before, trainer, self.store, self.reporter.note
        )
        return lambda: trainer

    @cached_property
    def recorder(self) -> RunRecorder:
        """What writes the run down; the main process's alone does."""
        kind = RunRecorder if self.world.is_main else SilentRecorder
        return kind(self.folder)

    @contextlib.contextmanager
    def failures_recorded(self) -> Iterator[None]:
        """Within, what ends the run before its end is written down. Raises LostProcess for errors
        that come of another process's end."""
        try:
            yield
        except BaseException as error:
            lost = lost_process(error, self.world)
            cause = self.stop.raised or lost or error
            with contextlib.suppress(OSError):
                self.reporter.ended(cause)
                self.recorder.update(
                    state="interrupted" if isinstance(cause, Interrupted) else "failed",
                    message=str(cause) or type(cause).__name__,
                    exit_code=getattr(cause, "exit_code", 1),
                )
                diverged = isinstance(cause, DivergedError)
                if diverged and self.world.is_main and extension.is_extended(self.folder):
                    extension.put_back(self.folder, self.store, self.manifest, self.reporter.note)
            if lost is not None and cause is lost:
                raise lost from error
            raise

    def train(self, trainer: Trainer) -> None:
        """Train from the newest checkpoint, or from the beginning, to the end. Raises Interrupted
        where a signal stops it."""
        self.ready(self.folder, self.machine)
        checkpoint = self.store.load_newest(self.reporter.note)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        if extension.is_extended(self.folder):
            step = None if checkpoint is None else checkpoint.step
            extension.restore(self.folder, self.manifest, trainer, self.store, step)
        if checkpoint is not None:
            self.reporter.note(f"going on with {self.manifest.name} from step {checkpoint.step}")
        progress = trainer.progress
        self.recorder.start(
            step=progress.step,
            total_steps=trainer.total_steps,
            validation_due=progress.validation_due,
        )
        for record in trainer.run():
            self._tell(record, trainer)
            self.recorder.update(
                step=record.step,
                share_done=trainer.progress_fraction(),
                elapsed=progress.elapsed,
                seconds_per_step=progress.elapsed / max(progress.step, 1),
            )
            if record.kind == "stopped":
                raise self._interrupted(record.step, trainer.total_steps)
        if trainer.total_steps is None and progress.step == 1 and trainer.config.warmup:
            self.reporter.note(
                "the time was over after one step, at whose beginning the learning rate was still "
                "0: the weights are as they were; give a longer training.time_limit"
            )

    def _tell(self, record: Record, trainer: Trainer) -> None:
        """Write down and show what happened at a step."""
        if record.kind in ("train", "validation", "skipped"):
            self.recorder.record({"kind": record.kind, "step": record.step, **record.values})
            self.reporter.metrics(record, trainer.total_steps, trainer.config.time_limit)
        if record.kind == "skipped":
            norm = record.values["gradient_norm"]
            spike = math.isfinite(norm)
            why = f"the gradient was a spike ({norm:.3g})" if spike else NOT_FINITE
            self.reporter.note(f"step {record.step}: {why}; step skipped")

    def _interrupted(self, step: int, total_steps: int | None) -> Interrupted:
        """What to say of a stop, and how to go on."""
        total = f" of {total_steps}" if total_steps else ""
        number = self.stop.signal_number
        assert number is not None
        if step in (steps := self.store.steps()):
            saved = " after writing a checkpoint"
        else:  # what came of a gradient that isn't finite is no good to go on from
            saved = f"; the last checkpoint is of step {steps[-1] if steps else 0}"
        return Interrupted(
            f"stopped by {signal.Signals(number).name} at step {step}{total}{saved}; "
            f"go on with: {resume_command(self.manifest)}",
            number,
        )

    def finish(self, trainer: Trainer, export: ExportModel, judge: Judge) -> None:
        """Write the model folder and the manifest of a finished run, then tidy up. Raises
        DivergedError where the last validation loss is not finite."""
        folder, manifest, progress = self.folder, self.manifest, trainer.progress
        loss = _validation(folder).get("loss", 0.0)
        if loss is None or not math.isfinite(loss):
            raise DivergedError(
                f"run {manifest.name} ended with a validation loss that is not finite, so no model "
                "is written; train again with --force and a lower training.learning_rate"
            )
        model = trainer.unsharded_model()
        if model is None:
            self.world.barrier()
            return
        with published_folder(folder / MODEL) as model_folder:
            figures = export(model, progress, model_folder)
        kept = _validation(folder, figures.get("best_step"))
        files = {
            f"{part}/{name}": record
            for part in (MODEL, ADAPTER)
            if (folder / part).is_dir()
            for name, record in FileRecord.below(folder / part).items()
        }
        summary = {
            **manifest.summary,
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.elapsed, 3),
            **({"validation": kept} if kept else {}),
            **figures,
        }
        summary |= judge(summary)
        self.recorder.update(state="finished", step=progress.step, share_done=1.0)
        # Last, as nobody tidies up behind a finished run.
        write_manifest(
            folder,
            manifest.model_copy(update={"finished": now(), "files": files, "summary": summary}),
        )
        self.reporter.tell(f"finished after {progress.step} steps: {told({**summary, **kept})}")
        (folder / extension.BEFORE).unlink(missing_ok=True)
        if trainer.config.keep_checkpoints != "all":
            self.store.tidy(keep_last=trainer.config.keep_checkpoints == "last")
        self.world.barrier()


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
    seen = world.all_reduce_sum([float(existing is not None)])[0]
    if seen not in (0, world.size):
        raise InputError(
            f"{folder} is there for {seen:.0f} of {world.size} processes: the workspace must lie "
            "on a file system that all machines share"
        )
