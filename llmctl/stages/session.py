"""What every training stage does around its trainer: lock, resume, record, stop, finish."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from llmctl.errors import DivergedError, Interrupted, UsageError
from llmctl.stages.reporter import Reporter
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.precision import choose_compile, choose_device, choose_precision
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import (
    Artefact,
    Manifest,
    Workspace,
    describe_files,
    now,
    write_manifest,
)
from llmctl.workspace.files import hidden_sibling, published_folder
from llmctl.workspace.locks import lock_path, writer_lock
from llmctl.workspace.runs import RunRecorder, read_metrics, resume_command

MODEL, ADAPTER = "model", "adapter"
"""Folders of a run: what was trained, and what LoRA added to it."""


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes; settled at its start, kept when it goes on."""

    device: torch.device
    precision: str
    compiled: bool


class StopFlag:
    """Set by the first SIGINT or SIGTERM; the second stops at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        return self.signal_number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise Interrupted("stopped at once by a second signal", number)
        self.signal_number = number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM set while the block runs."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {n: signal.signal(n, flag.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def rehearsal_folder(workspace: Workspace) -> Iterator[Path]:
    """A hidden folder where runs lie, to rehearse a training in; gone after the block."""
    workspace.prepare("run")
    target = workspace.path("run", f"rehearsal-{uuid.uuid4().hex[:8]}")
    folder = hidden_sibling(target)
    # Locked, it is not taken for what a crash left behind; and if this crashes, it is.
    with writer_lock(target):
        folder.mkdir(parents=True)
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
    export: Callable[[Trainer, CheckpointStore, Path], dict[str, Any]],
    reporter: Reporter,
    expected_seconds: Callable[[torch.device, str], float | None] = lambda device, precision: None,
) -> Artefact:
    """Train a run to its end: start it, or go on from its newest whole checkpoint.

    prepare: builds the trainer. export: writes the model folder and returns figures for the
    manifest's summary. expected_seconds: of the training, by device and precision; None where
    its shapes are no good to compile for. Raises Interrupted after the checkpoint that a signal
    asks for.

    A run of the same name that is to be replaced stays until the new one is ready to train.
    """
    workspace.prepare(manifest.kind)
    folder = workspace.path(manifest.kind, manifest.name)
    store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints)
    with writer_lock(folder), stop_on_signals() as stop, torch.random.fork_rng(devices=[]):
        if existing is None:
            device = choose_device(config.device)
            precision = choose_precision(config.precision, device)
            seconds = None
            if config.compile == "auto":
                seconds = expected_seconds(device, precision)
            compiled = choose_compile(config.compile, device, seconds)
            machine = Machine(device, precision, compiled)
            summary = {
                **manifest.summary,
                "device": device.type,
                "precision": machine.precision,
                "compiled": compiled,
                "threads": torch.get_num_threads(),
                "cpu": torch.backends.cpu.get_cpu_capability(),
            }
            manifest = manifest.model_copy(update={"summary": summary})
            trainer = prepare(machine, store, stop)
            with published_folder(folder) as hidden:
                write_manifest(hidden, manifest)
            recorder = RunRecorder(folder)
        else:
            manifest = existing.manifest
            machine = _same_machine(manifest, reporter)
            recorder = RunRecorder(folder)
            recorder.update(state="running", message=None)
        try:
            if existing is not None:
                trainer = prepare(machine, store, stop)
            _train(folder, manifest, trainer, store, recorder, stop, export, reporter)
        except Interrupted as error:
            recorder.update(state="interrupted", message=str(error))
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):
                recorder.update(state="failed", message=str(error) or type(error).__name__)
            raise
    return workspace.get(manifest.kind, manifest.name)


def _train(
    folder: Path,
    manifest: Manifest,
    trainer: Trainer,
    store: CheckpointStore,
    recorder: RunRecorder,
    stop: StopFlag,
    export: Callable[[Trainer, CheckpointStore, Path], dict[str, Any]],
    reporter: Reporter,
) -> None:
    for leftover in store.folder.glob(".*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    checkpoint = store.load_newest(reporter.note)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        reporter.note(f"going on with {manifest.name} from step {checkpoint.step}")
    recorder.start(step=trainer.progress.step, total_steps=trainer.total_steps)
    for record in trainer.run():
        if record.kind in ("train", "validation", "skipped"):
            recorder.record({"kind": record.kind, "step": record.step, **record.values})
            reporter.metrics(record.kind, record.step, trainer.total_steps, record.values)
        if record.kind == "skipped":
            norm = record.values["gradient_norm"]
            why = f"a spike ({norm:.3g})" if math.isfinite(norm) else "not finite"
            reporter.note(f"step {record.step}: the gradient was {why}; step skipped")
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
            raise Interrupted(
                f"stopped by {signal.Signals(number).name} at step {record.step}{total} after "
                f"writing a checkpoint; go on with: {resume_command(manifest)}",
                number,
            )
    last = _validation(folder)
    if not math.isfinite(last.get("loss", 0.0)):
        raise DivergedError(
            f"run {manifest.name} ended with a validation loss of {last['loss']}, so no model is "
            "written; train again with --force and a lower training.learning_rate"
        )
    with published_folder(folder / MODEL) as model_folder:
        figures = export(trainer, store, model_folder)
    kept = _validation(folder, figures.get("best_step"))
    files = {
        f"{part}/{name}": record
        for part in (MODEL, ADAPTER)
        if (folder / part).is_dir()
        for name, record in describe_files(folder / part).items()
    }
    summary = {
        **manifest.summary,
        "steps": trainer.progress.step,
        "tokens": trainer.progress.tokens,
        "seconds": round(trainer.progress.elapsed, 3),
        **({"validation": kept} if kept else {}),
        **figures,
    }
    write_manifest(
        folder,
        manifest.model_copy(update={"finished": now(), "files": files, "summary": summary}),
    )
    recorder.update(state="finished", step=trainer.progress.step, share_done=1.0)


def _validation(folder: Path, step: int | None = None) -> dict[str, float]:
    """The last look, or that at a step, from the log: a run that goes on at its very end measures
    nothing more."""
    looks = [
        record
        for record in read_metrics(folder / "metrics.jsonl")
        if record.get("kind") == "validation" and (not step or record["step"] == step)
    ]
    return {k: v for k, v in looks[-1].items() if k not in ("kind", "step")} if looks else {}


def _same_machine(manifest: Manifest, reporter: Reporter) -> Machine:
    """Where a run goes on: as it was begun. Raises UsageError if that device isn't here."""
    begun_on = manifest.summary["device"]
    try:
        device = choose_device(begun_on)
    except UsageError:
        raise UsageError(
            f"run {manifest.name} was begun on {begun_on}, which this machine does not have; go on "
            "where it was begun, or begin again with --force"
        ) from None
    here = {
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
            "may differ in the last bits from a run that never stopped"
        )
    compiled = choose_compile("on", device, None) if manifest.summary.get("compiled") else False
    return Machine(device, manifest.summary["precision"], compiled)
