"""Train: what ``pretrain`` or ``finetune`` is asked for, to a run with its model.

The two commands are doors to one stage. It finds the run that is there already, goes on with it or
begins it, and knows no task: what is learned, and from what, the request says.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from llmctl.reporting.reporter import Reporter
from llmctl.reporting.run_log import LoggedReporter
from llmctl.tasks.base import InstantTask, NetworkTask, Request, Sources, Task
from llmctl.tasks.learned import said_of, weak_start
from llmctl.tasks.model_card import write_card
from llmctl.tasks.requests import REQUESTS, FinetuneRequest, PretrainRequest
from llmctl.training.adapters.base import merge
from llmctl.training.batches import Objective
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.device import Machine
from llmctl.training.distributed.processes import World, get_world, process_group
from llmctl.training.extension import find_run
from llmctl.training.planning.budget import choose_shape
from llmctl.training.planning.choice import Choice
from llmctl.training.planning.rehearsal import rehearsal_folder, time_steps
from llmctl.training.precision import choose_device
from llmctl.training.run import finished_before, run_training
from llmctl.training.signals import StopFlag
from llmctl.training.trainer import Trainer
from llmctl.training.validation import evaluate
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import published_folder
from llmctl.workspace.locks import writer_lock
from llmctl.workspace.manifests import (
    FileRecord,
    Manifest,
    new_manifest,
    now,
    write_manifest,
)

WORTH_TRYING = 100
"""Steps of a training from which on a few are tried, to tell whether compiling pays."""
TRIAL_SECONDS = 1.0


def request_of(
    stage: str,
    workspace: Workspace,
    named: Mapping[str, Any],
    options: Mapping[str, Any],
    *layers: Mapping[str, Any],
) -> Request:
    """What a command asks for: see ``Request.of``."""
    return REQUESTS[stage].of(workspace, named, options, *layers)


def pretrain(
    workspace: Workspace, config: Any, *, shards_name: str | None = None, **how: Any
) -> tuple[Artefact, bool]:
    """Train a model on shards, from random weights: see ``train``."""
    return train(workspace, PretrainRequest(config, shards=shards_name), **how)


def finetune(
    workspace: Workspace,
    start: str,
    data: Path,
    config: Any,
    *,
    like: str | None = None,
    **how: Any,
) -> tuple[Artefact, bool]:
    """Train a model for a task: see ``train``."""
    return train(workspace, FinetuneRequest(config, start, data, like), **how)


@process_group()
def train(
    workspace: Workspace,
    request: Request,
    *,
    name: str | None = None,
    force: bool = False,
    start_time: float | None = None,
    profile: bool = False,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> tuple[Artefact, bool]:
    """Train what is asked for; returns the run, and whether it was finished already.

    start_time: when the command began, by time.perf_counter: a budget counts from then; default
    now. profile: trace some steps. command: that goes on with this run, where the one being run
    does more than that.
    """
    reporter = LoggedReporter(reporter or Reporter())
    start_time = time.perf_counter() if start_time is None else start_time
    sources = request.open(workspace, reporter)
    run_name, existing, before = find_run(
        workspace, name, sources.default_name, sources.identity, force=force, note=reporter.note
    )
    if existing is not None and existing.finished and before is None:
        return _with_card(workspace, finished_before(existing)), True
    config, choice = request.config, None
    if getattr(config, "budget", None) is not None and existing is not None:
        # What was chosen at the start is kept: only the rest of the time is left.
        config = config.replace(**existing.manifest.config)
    else:
        config, choice = within_budget(workspace, sources, config, start_time, reporter)
    task = sources.open(config, reporter)
    for sentence in (task.introduction, weak_start(workspace, sources.parent)):
        if sentence is not None:
            reporter.note(sentence)
    manifest = new_manifest(
        "run",
        run_name,
        stage=request.stage,
        config=task.manifest_config,
        identity=sources.identity,
        seed=getattr(task.config, "seed", None),
        command=command,
    )
    if isinstance(task, InstantTask):
        return _with_card(workspace, _fit(workspace, manifest, task, reporter), reporter), False
    assert isinstance(task, NetworkTask)
    if choice is not None:
        manifest = manifest.model_copy(update={"summary": {"budget": choice.document()}})

    def prepare(machine: Machine, store: CheckpointStore, stop: StopFlag) -> Trainer:
        return make_trainer(task, machine, store, reporter, stop, machine.matrix_flops)

    artefact = run_training(
        workspace,
        manifest,
        existing,
        task.config.training,
        prepare=prepare,
        ready=partial(task.before_training, reporter=reporter),
        export=task.export,
        reporter=reporter,
        profile=profile,
        expected_seconds=partial(expected_seconds, task),
        judge=task.conclude,
        before=before,
    )
    if (said := said_of(artefact.manifest)) is not None:
        reporter.note(said)
    return _with_card(workspace, artefact, reporter), False


def _with_card(workspace: Workspace, run: Artefact, reporter: Reporter | None = None) -> Artefact:
    """A finished run, after the card of its model is written."""
    if get_world().is_main:
        write_card(workspace, run, (reporter or Reporter()).note)
    return run


def check(workspace: Workspace, request: Request, reporter: Reporter) -> None:
    """Raises what would stop a training before it begins, as far as can be told without reading
    its data."""
    request.open(workspace, reporter)
    if (training := getattr(request.config, "training", None)) is not None:
        choose_device(training.device)


def find(workspace: Workspace, request: Request, name: str, reporter: Reporter) -> Artefact | None:
    """The run of a name where this training is begun or done already.

    Raises NameTaken if something else has the name.
    """
    sources = request.open(workspace, reporter)
    _, existing = workspace.match(
        "run", name, sources.default_name, sources.identity, force=False, note=reporter.note
    )
    return existing


def _fit(
    workspace: Workspace, manifest: Manifest, task: InstantTask, reporter: LoggedReporter
) -> Artefact:
    """The run of a task that is done in one go."""
    target = workspace.path("run", manifest.name)
    workspace.prepare("run")
    with writer_lock(target), published_folder(target) as folder:
        reporter.attach(folder)
        summary = task.fit(folder, reporter)
        # A run's identity is its model: the log beside it tells of a process and a time.
        files = {f"model/{k}": v for k, v in FileRecord.below(folder / "model").items()}
        done = {"finished": now(), "summary": summary, "files": files}
        write_manifest(folder, manifest.model_copy(update=done))
    return workspace.get("run", manifest.name)


def within_budget(
    workspace: Workspace, sources: Sources, config: Any, start_time: float, reporter: Reporter
) -> tuple[Any, Choice | None]:
    """The configuration that a budget comes to on this machine, where there is one; all processes
    must call it."""
    if getattr(config, "budget", None) is None:
        return config, None
    world: World = get_world()
    with rehearsal_folder(workspace, world) as folder:
        return choose_shape(
            config,
            folder,
            start_time=start_time,
            open_pretraining=lambda config: sources.open(config, Reporter()),
            make_trainer=make_trainer,
            reporter=reporter,
            world=world,
        )


def make_trainer(
    task: NetworkTask,
    machine: Machine,
    store: CheckpointStore,
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    matrix_flops: float | None = None,
) -> Trainer:
    """The trainer of a task, with the weights that it starts from."""
    model = task.build_model()
    trained, parameters = trainable(model), sum(p.numel() for p in model.parameters())
    if reporter is not None and trained < parameters:
        reporter.note(
            f"{trained:,} of {parameters:,} parameters train ({trained / parameters:.2%})"
        )
    objective = Objective(model, task.loss)
    # The same each time: made once.
    validation = task.validation_batches()
    if not validation and task.unvalidated is not None and reporter is not None:
        reporter.note(task.unvalidated)

    def validate() -> dict[str, float]:
        values = evaluate(
            objective,
            validation.__getitem__,
            len(validation),
            device=machine.device,
            precision=machine.precision,
            world=machine.world,
            should_stop=should_stop,
        )
        return task.add_selection_metric(values)

    return Trainer(
        objective,
        task.batch,
        task.config.training,
        total_steps=task.total_steps,
        seed=task.config.seed,
        rate_scale=task.rate_scale,
        device=machine.device,
        precision=machine.precision,
        store=store,
        validate=validate if validation else None,
        eval_every=task.eval_every,
        patience=task.patience,
        steps_together=task.steps_together,
        keep_best=task.keeps_best,
        compiled=machine.compiled,
        matrix_flops=matrix_flops,
        world=machine.world,
        should_stop=should_stop,
    )


def trainable(model: nn.Module) -> int:
    """Parameters of a model that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def expected_seconds(task: NetworkTask, machine: Machine) -> float | None:
    """Seconds of the training by a few of its steps; None where it is too short to try some, or
    gains nothing by compiling."""
    if not task.compiles_on(machine.device):
        return None
    training, steps = task.config.training, task.total_steps
    if training.time_limit is not None:
        return float(training.time_limit)
    if steps is None or steps < WORTH_TRYING:
        return None
    # Nothing is written: the steps end before a checkpoint is due.
    trainer = make_trainer(task, machine, CheckpointStore(Path(), 1))
    found = time_steps(trainer, TRIAL_SECONDS, give_up=2 * TRIAL_SECONDS)
    del trainer
    gc.collect()  # its memory is wanted again
    return steps * found.seconds_per_step


def outline(
    workspace: Workspace,
    request: Request,
    *,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter,
) -> dict[str, Any]:
    """The resolved configuration, and what the training would do, without trying a step."""
    sources = request.open(workspace, reporter)
    run_name, existing, before = find_run(
        workspace, name, sources.default_name, sources.identity, force=force, note=reporter.note
    )
    task: Task = sources.open(request.config, reporter)
    assert isinstance(task, NetworkTask)
    model = task.build_model()
    trained = trainable(model)
    merge(model)
    return {
        "config": task.config.model_dump(mode="json"),
        "plan": {
            "name": run_name,
            "up_to_date": existing is not None and existing.finished and before is None,
            **task.plan_facts,
            "total_steps": task.total_steps,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": trained,
        },
    }
