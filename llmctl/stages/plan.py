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
from llmctl.training.distributed.processes import current, joined
from llmctl.training.planning.memory import FRAGMENTS
from llmctl.training.planning.plan import Extent, Plan, parameters_by_part
from llmctl.training.planning.rehearsal import (
    Rehearsal,
    count_flops,
    rehearsal_folder,
    rehearse,
)
from llmctl.training.progress import Progress
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Workspace

REHEARSAL_SECONDS, LONGEST_REHEARSAL = 3.0, 10.0
"""For a plan's steps: at the least, and where others compute on this machine."""

Maker = Callable[[Machine, CheckpointStore], Trainer]
Export = Callable[[nn.Module, Progress, Path], object]


@joined()
def plan_pretraining(
    workspace: Workspace,
    config: PretrainConfig[Any, Any, Any],
    shards_name: str | None,
    reporter: Reporter,
    *,
    begun: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """The resolved configuration, and what it will take on this machine; where several processes
    will train, all must call it.

    begun: when the command began, by time.perf_counter; default now. price: of an hour.
    """
    world = current()
    begun = time.perf_counter() if begun is None else begun
    shards = shards_of(workspace, config.arch, shards_name, reporter)
    choice = None
    if config.budget is not None:
        config, choice = choose_for_budget(workspace, shards, config, begun, reporter, world)
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
    device, start = machine.device, time.perf_counter() - begun
    if machine.compiled:
        reporter.note("compiling the model, as the run will: up to a minute")
    rehearsal = _rehearse(workspace, make, export, machine)
    looks = pretraining.batches("validation", seed=0).per_epoch > 0
    vocab_size = config.model.vocab_size
    with torch.device("meta"):
        model = pretraining.build_model(config.seed)
    plan = Plan(
        parameters=parameters_by_part(model),
        flops_per_token=pretraining.flops_per_token(),
        rehearsal=rehearsal,
        training=config.training,
        extent=Extent(total, eval_every(config.training, total), looks),
        start_seconds=start,
        matrix_flops=world.total([machine.matrix_flops])[0],
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


@joined()
def plan_finetuning(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    reporter: Reporter,
    *,
    like: str | None = None,
    begun: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """The same for a finetuning: at most, as it may stop early."""
    world = current()
    begun = time.perf_counter() if begun is None else begun
    task = finetuning.open_task(workspace, start, data, config, like, reporter)
    training = task.config.training
    machine = choose_machine(training, world)
    device, eager = machine.device, replace(machine, compiled=False)
    seconds = time.perf_counter() - begun

    def make(machine: Machine, store: CheckpointStore) -> Trainer:
        return finetuning.make_trainer(task, machine, store)

    def export(model: nn.Module, progress: Progress, folder: Path) -> object:
        return finetuning.export_model(task, model, progress, folder)

    rehearsal = _rehearse(workspace, make, export, machine)
    model = task.build_model()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plan = Plan(
        parameters=parameters_by_part(model),
        # Each process counts what it does for all of a step's tokens.
        flops_per_token=world.total([count_flops(make(eager, CheckpointStore(Path(), 1)))])[0],
        rehearsal=rehearsal,
        training=training,
        extent=Extent(
            task.total_steps,
            training.eval_every or task.batches_per_epoch,
            task.held_out_examples > 0,
        ),
        start_seconds=seconds,
        matrix_flops=world.total([machine.matrix_flops])[0],
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


def _rehearse(workspace: Workspace, make: Maker, export: Export, machine: Machine) -> Rehearsal:
    def once(longest: float) -> Rehearsal:
        with (
            rehearsal_folder(workspace, machine.world) as folder,
            torch.random.fork_rng(devices=[]),
        ):
            return rehearse(
                lambda store: make(machine, store), export, folder, REHEARSAL_SECONDS, longest
            )

    if machine.compiled:
        memory = once(REHEARSAL_SECONDS).memory
        # The kernels are kept on disk: the run, as here the second time, only has to fetch them.
        torch.compiler.reset()
        found = once(LONGEST_REHEARSAL)
        found.memory = memory
        return found
    found = once(LONGEST_REHEARSAL)
    gc.collect()
    return found
