"""Plan: what a recipe will take on this machine, by a rehearsal of it; nothing is started.

``llmctl plan`` and ``--dry-run`` of pretrain come here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmctl.models.heads.cross_entropy import rows_at_a_time
from llmctl.reporting.reporter import Reporter
from llmctl.stages import finetune as finetuning
from llmctl.stages.pretrain import (
    choose_for_budget,
    eval_every,
    expected_seconds,
    export_model,
    make_trainer,
    shards_of,
)
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.tasks.pretraining import PretrainConfig, open_pretraining, total_steps
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.device import Machine, choose_machine
from llmctl.training.distributed.processes import get_world, process_group
from llmctl.training.planning.memory import FRAGMENTS
from llmctl.training.planning.plan import Extent, TrainingPlan, parameters_by_part
from llmctl.training.planning.rehearsal import (
    StepTimings,
    count_flops,
    measure_training,
    rehearsal_folder,
)
from llmctl.training.progress import Progress
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace

DRY_RUN_SECONDS, LONGEST_DRY_RUN = 3.0, 10.0
"""For a plan's steps: at the least, and where others compute on this machine."""

MakeTrainer = Callable[[Machine, CheckpointStore], Trainer]
ExportModel = Callable[[nn.Module, Progress, Path], object]


@process_group()
def plan_pretraining(
    workspace: Workspace,
    config: PretrainConfig[Any, Any, Any],
    shards_name: str | None,
    reporter: Reporter,
    *,
    start_time: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """The resolved configuration, and what it will take on this machine; where several processes
    will train, all must call it.

    start_time: when the command began, by time.perf_counter; default now. price: of an hour.
    """
    world = get_world()
    start_time = time.perf_counter() if start_time is None else start_time
    shards = shards_of(workspace, config.arch, shards_name, reporter)
    choice = None
    if config.budget is not None:
        config, choice = choose_for_budget(workspace, shards, config, start_time, reporter, world)
    pretraining, config = open_pretraining(shards, config)
    batches = pretraining.batches("train", seed=config.seed)
    total = total_steps(config.training, batches)

    def make(machine: Machine, store: CheckpointStore) -> Trainer:
        return make_trainer(pretraining, config, machine, store, Reporter())

    def export(model: nn.Module, progress: Progress, folder: Path) -> object:
        return export_model(pretraining, config, model, folder)

    # As the run will choose it, with what that takes it.
    with torch.random.fork_rng(devices=[]):
        machine = choose_machine(
            config.training, world, partial(expected_seconds, pretraining, config)
        )
    device, start = machine.device, time.perf_counter() - start_time
    if machine.compiled:
        reporter.note("compiling the model, as the run will: up to a minute")
    timings = _measure(workspace, make, export, machine)
    validates = pretraining.batches("validation", seed=0).per_epoch > 0
    vocab_size = config.model.vocab_size
    with torch.device("meta"):
        model = pretraining.build_model(config.seed)
    plan = TrainingPlan(
        parameters=parameters_by_part(model),
        flops_per_token=pretraining.flops_per_token(),
        rehearsal=timings,
        training=config.training,
        extent=Extent(total, eval_every(config.training, total), validates),
        start_seconds=start,
        matrix_flops=world.all_reduce_sum([machine.matrix_flops])[0],
        processes=world.size,
        logits_bytes=4 * vocab_size * rows_at_a_time(device, vocab_size),
        fragments=FRAGMENTS.get(device.type, 0.0),
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        mapped_bytes=sum(path.stat().st_size for path in shards.folder.glob("train-*.arrow")),
    )
    return {
        "config": config.model_dump(mode="json"),
        "plan": {
            "stage": "pretrain",
            "shards": shards.manifest.name,
            "device": device.type,
            "precision": machine.precision,
            "compiled": machine.compiled,
            "steps_per_epoch": batches.per_epoch,
            **plan.document(price),
            **({"budget": choice.document()} if choice is not None else {}),
        },
    }


@process_group()
def plan_finetuning(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    reporter: Reporter,
    *,
    like: str | None = None,
    start_time: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """A finetuning's resolved configuration, and what it will take on this machine at most, as it
    may stop early."""
    world = get_world()
    start_time = time.perf_counter() if start_time is None else start_time
    task = finetuning.open_task(workspace, start, data, config, like, reporter)
    training = task.config.training
    machine = choose_machine(training, world)
    device, eager = machine.device, replace(machine, compiled=False)
    seconds = time.perf_counter() - start_time

    def make(machine: Machine, store: CheckpointStore) -> Trainer:
        return finetuning.make_trainer(task, machine, store)

    def export(model: nn.Module, progress: Progress, folder: Path) -> object:
        return finetuning.export_model(task, model, progress, folder)

    timings = _measure(workspace, make, export, machine)
    model = task.build_model()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plan = TrainingPlan(
        parameters=parameters_by_part(model),
        # Each process counts what it does for all of a step's tokens.
        flops_per_token=world.all_reduce_sum(
            [count_flops(make(eager, CheckpointStore(Path(), 1)))]
        )[0],
        rehearsal=timings,
        training=training,
        extent=Extent(
            task.total_steps,
            training.eval_every or task.batches_per_epoch,
            task.held_out_examples > 0,
        ),
        start_seconds=seconds,
        matrix_flops=world.all_reduce_sum([machine.matrix_flops])[0],
        processes=world.size,
        fragments=FRAGMENTS.get(device.type, 0.0),
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
    )
    return {
        "config": task.config.model_dump(mode="json"),
        "plan": {
            "stage": "finetune",
            "from": start,
            "data": str(data),
            "device": device.type,
            "precision": machine.precision,
            "compiled": machine.compiled,
            "train_examples": task.train_examples,
            "validation_examples": task.held_out_examples,
            "trainable_parameters": trainable,
            **plan.document(price),
        },
    }


def _measure(
    workspace: Workspace, make: MakeTrainer, export: ExportModel, machine: Machine
) -> StepTimings:
    def once(longest: float) -> StepTimings:
        with (
            rehearsal_folder(workspace, machine.world) as folder,
            torch.random.fork_rng(devices=[]),
        ):
            return measure_training(
                lambda store: make(machine, store), export, folder, DRY_RUN_SECONDS, longest
            )

    if machine.compiled:
        memory = once(DRY_RUN_SECONDS).memory
        # The kernels are kept on disk: the run, as here the second time, only has to fetch them.
        torch.compiler.reset()
        timings = once(LONGEST_DRY_RUN)
        timings.memory = memory
        return timings
    timings = once(LONGEST_DRY_RUN)
    gc.collect()
    return timings
