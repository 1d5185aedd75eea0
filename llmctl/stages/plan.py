"""Plan: what a training will take on this machine, by a rehearsal of it; nothing is started.

``llmctl plan`` and ``--dry-run`` of pretrain come here.
"""

from __future__ import annotations

import contextlib
import gc
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmctl.models.heads.cross_entropy import rows_at_a_time
from llmctl.reporting.reporter import Reporter
from llmctl.stages.train import expected_seconds, make_trainer, within_budget
from llmctl.tasks.base import InstantTask, NetworkTask, Request
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
from llmctl.workspace.artefacts import Workspace

DRY_RUN_SECONDS, LONGEST_DRY_RUN = 3.0, 10.0
"""For a plan's steps: at the least, and where others compute on this machine."""


@process_group()
def plan(
    workspace: Workspace,
    request: Request,
    reporter: Reporter,
    *,
    start_time: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """The resolved configuration, and what it will take on this machine, at most where it may stop
    early; where several processes will train, all must call it.

    start_time: when the command began, by time.perf_counter; default now. price: of an hour.
    """
    world = get_world()
    start_time = time.perf_counter() if start_time is None else start_time
    sources = request.open(workspace, reporter)
    config, choice = within_budget(workspace, sources, request.config, start_time, reporter)
    task = sources.open(config, reporter)
    described = {"config": task.config.model_dump(mode="json")}
    if isinstance(task, InstantTask):
        return {**described, "plan": task.plan(price)}
    assert isinstance(task, NetworkTask)
    # As the run will choose it, with what that takes it.
    with torch.random.fork_rng(devices=[]):
        machine = choose_machine(task.config.training, world, partial(expected_seconds, task))
    start = time.perf_counter() - start_time
    if machine.compiled:
        reporter.note("compiling the model, as the run will: up to a minute")
    rehearsal = _measure(workspace, task, machine)
    with torch.device("meta") if task.base is None else contextlib.nullcontext():
        model = task.build_model()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plan = TrainingPlan(
        parameters=parameters_by_part(model),
        rehearsal=rehearsal,
        start_seconds=start,
        **_known(task, machine),
    )
    return {
        **described,
        "plan": {
            "stage": request.stage,
            "device": machine.device.type,
            "precision": machine.precision,
            "compiled": machine.compiled,
            **task.plan_facts,
            "trainable_parameters": trainable,
            **plan.document(price),
            **({"budget": choice.document()} if choice is not None else {}),
        },
    }


def _known(task: NetworkTask, machine: Machine) -> dict[str, Any]:
    """What a plan takes of a task and the machine beside a rehearsal."""
    device, world, logits, mapped = machine.device, machine.world, 0, 0
    flops = task.flops_per_token()
    if flops is None:
        # Each process counts what it does for all of a step's tokens.
        trainer = make_trainer(task, replace(machine, compiled=False), CheckpointStore(Path(), 1))
        flops = world.all_reduce_sum([count_flops(trainer)])[0]
    if task.shards is not None:
        vocab_size = task.config.model.vocab_size
        logits = 4 * vocab_size * rows_at_a_time(device, vocab_size)
        mapped = sum(path.stat().st_size for path in task.shards.folder.glob("train-*.arrow"))
    return {
        "flops_per_token": flops,
        "training": task.config.training,
        "extent": Extent(task.total_steps, task.eval_every, bool(task.validation_batches())),
        "matrix_flops": world.all_reduce_sum([machine.matrix_flops])[0],
        "processes": world.size,
        "logits_bytes": logits,
        "fragments": FRAGMENTS.get(device.type, 0.0),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "mapped_bytes": mapped,
    }


def _measure(workspace: Workspace, task: NetworkTask, machine: Machine) -> StepTimings:
    def once(longest: float) -> StepTimings:
        with (
            rehearsal_folder(workspace, machine.world) as folder,
            torch.random.fork_rng(devices=[]),
        ):
            make = partial(make_trainer, task, machine)
            return measure_training(make, task.export, folder, DRY_RUN_SECONDS, longest)

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
