"""Finetune: a pretrained model and a task's data to a model that does the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from llmctl.config import build
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError, did_you_mean
from llmctl.formats.base import Pretrained
from llmctl.formats.open import open_model
from llmctl.formats.peft.folder import Adapter, Peft
from llmctl.models import ARCHITECTURES
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.run_log import LoggedReporter
from llmctl.tasks.classify.task import ClassifyConfig, ClassifyTask
from llmctl.tasks.finetuning import FinetuneConfig, Task, check_layers
from llmctl.tasks.instruct.task import InstructConfig, InstructTask
from llmctl.tasks.learned import weak_start
from llmctl.tasks.pretraining_runs import newest_pretrained
from llmctl.tasks.seq2seq.task import Seq2SeqConfig, Seq2SeqTask
from llmctl.training.adapters.lora import additions, merge
from llmctl.training.batches import Objective
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.device import Machine
from llmctl.training.extension import find_run
from llmctl.training.precision import choose_device
from llmctl.training.progress import Progress
from llmctl.training.run import ADAPTER, finished_before, run_training
from llmctl.training.signals import StopFlag
from llmctl.training.trainer import Trainer
from llmctl.training.validation import evaluate
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import published_folder
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord, Manifest, new_manifest
from llmctl.workspace.names import slug

SCRATCH = "scratch"
DEFAULT_TASK = "classify"

FINETUNE_TASKS: dict[str, tuple[type[FinetuneConfig], Any]] = {
    "classify": (ClassifyConfig, ClassifyTask),
    "instruct": (InstructConfig, InstructTask),
    "seq2seq": (Seq2SeqConfig, Seq2SeqTask),
}
"""What can be learned: its configuration, and its data and network."""


def resolve(task: str | None, *layers: Mapping[str, Any]) -> FinetuneConfig:
    """The configuration of a task from its defaults and what is laid over them.

    task: by default what the last layer says that names one. Raises UsageError for an unknown task.
    """
    named = (layer["task"] for layer in reversed(layers) if "task" in layer)
    task = task or next(named, None) or DEFAULT_TASK
    # A recipe may give any value: a list compares where a dictionary would want a hash.
    if task not in list(FINETUNE_TASKS):
        raise UsageError(
            f"--task {task!r} is not known{did_you_mean(str(task), FINETUNE_TASKS)}; choose one of "
            f"{', '.join(FINETUNE_TASKS)}"
        )
    kind, _ = FINETUNE_TASKS[task]
    return build(kind, {"task": task, "training": kind().training.model_dump()}, *layers)  # type: ignore[call-arg]


def finetune(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    *,
    like: str | None = None,
    name: str | None = None,
    force: bool = False,
    profile: bool = False,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> tuple[Artefact, bool]:
    """Train a model for a task; returns the run, and whether it was finished already.

    start: a run's name, a model folder, or ``scratch``: the same network as ``like`` (by default
    the newest pretrained run) with random weights. data: the task's examples. command: that goes
    on with this run, where the one being run does more than that.
    """
    reporter = LoggedReporter(reporter or Reporter())
    resolved = _resolve(workspace, start, data, config, like, name, force, reporter, extend=True)
    base, existing = resolved.base, resolved.existing
    if existing is not None and existing.finished and resolved.before is None:
        return finished_before(existing), True
    task = resolved.task(data, reporter)
    config = task.config
    reporter.note(task.describe())
    started = None if resolved.scratch else resolved.inputs[0].artefact
    weak = weak_start(workspace, workspace.get(*started)) if started else None
    if weak is not None:
        reporter.note(weak)
    manifest = new_manifest(
        "run",
        resolved.name,
        stage="finetune",
        config={
            **config.model_dump(mode="json"),
            "model": base.config.model_dump(mode="json"),
            "from": start,
            **task.plan_facts,
        },
        identity=resolved.identity,
        seed=config.seed,
        command=command,
    )

    def prepare(machine: Machine, store: CheckpointStore, stop: StopFlag) -> Trainer:
        return make_trainer(
            task, machine, store, should_stop=stop, matrix_flops=machine.matrix_flops
        )

    def export(model: nn.Module, progress: Progress, folder: Path) -> dict[str, Any]:
        return export_model(task, model, progress, folder)

    artefact = run_training(
        workspace,
        manifest,
        existing,
        config.training,
        prepare=prepare,
        export=export,
        reporter=reporter,
        profile=profile,
        before=resolved.before,
    )
    return artefact, False


def find(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    *,
    like: str | None,
    name: str,
    reporter: Reporter,
) -> Artefact | None:
    """The run of a name where this finetuning is begun or done already.

    Raises NameTaken if something else has the name.
    """
    return _resolve(workspace, start, data, config, like, name, False, reporter).existing


def check(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    *,
    like: str | None,
    reporter: Reporter,
) -> None:
    """Raises what would stop a finetuning before it begins, as far as can be told without reading
    its data."""
    check_layers(config, _open_start(workspace, start, data, config, like, reporter).base)
    choose_device(config.training.device)


def open_task(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    like: str | None,
    reporter: Reporter,
) -> Task:
    """A task with its data and the model that it starts from."""
    resolved = _resolve(workspace, start, data, config, like, None, False, reporter)
    return resolved.task(data, reporter)


def make_trainer(
    task: Task,
    machine: Machine,
    store: CheckpointStore,
    should_stop: Callable[[], bool] = lambda: False,
    matrix_flops: float | None = None,
) -> Trainer:
    """The trainer of a finetuning, with the weights that it starts from."""
    config = task.config
    objective = Objective(task.build_model(), task.loss)
    validation = task.validation_batches()

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
        config.training,
        total_steps=task.total_steps,
        seed=config.seed,
        rate_scale=task.rate_scale,
        device=machine.device,
        precision=machine.precision,
        store=store,
        validate=validate if validation else None,
        eval_every=config.training.eval_every or task.batches_per_epoch,
        patience=config.patience,
        keep_best=True,
        compiled=machine.compiled,
        matrix_flops=matrix_flops,
        world=machine.world,
        should_stop=should_stop,
    )


def export_model(task: Task, model: nn.Module, progress: Progress, folder: Path) -> dict[str, Any]:
    """Write the model folder, and what LoRA added beside it; returns figures for the summary."""
    base, config = task.base, task.config
    # 0 where nothing was held out: then the last weights are the model.
    if best_step := progress.best_step:
        store = CheckpointStore(folder.parent / "checkpoints", keep=1)
        model.load_state_dict(store.load_best(best_step))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    added = additions(model)
    merge(model)
    if added:
        with published_folder(folder.with_name(ADAPTER)) as adapter:
            lora = {
                "task_type": task.peft_task,
                "r": config.lora.rank,
                "lora_alpha": config.lora.alpha,
                "lora_dropout": config.lora.dropout,
            }
            learned = Adapter(base, added, task.heads(model))
            Peft().save(adapter, learned, base.tokenizer, lora)
    task.write(folder, model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": trained,
        "best_step": best_step,
        **({"criterion": progress.best} if best_step else {}),
        "train_examples": task.train_examples,
        "validation_examples": task.held_out_examples,
    }


def plan(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    *,
    like: str | None = None,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """The resolved configuration, and what ``finetune`` would do."""
    reporter = reporter or Reporter()
    resolved = _resolve(workspace, start, data, config, like, name, force, reporter, extend=True)
    task = resolved.task(data, reporter)
    model = task.build_model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    merge(model)
    return {
        "config": task.config.model_dump(mode="json"),
        "plan": {
            "name": resolved.name,
            "up_to_date": (
                resolved.existing is not None
                and resolved.existing.finished
                and resolved.before is None
            ),
            "from": start,
            "data": str(data),
            "train_examples": task.train_examples,
            "validation_examples": task.held_out_examples,
            **task.plan_facts,
            "total_steps": task.total_steps,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": trained,
        },
    }


@dataclass(frozen=True)
class _StartingPoint:
    """What a finetuning is made from."""

    base: Pretrained
    scratch: bool
    config: FinetuneConfig
    inputs: list[InputRecord]
    """The model's first."""


@dataclass(frozen=True)
class _ResolvedFinetune(_StartingPoint):
    """That, and the run that it is."""

    identity: Identity
    name: str
    existing: Artefact | None
    before: Manifest | None = None
    """The manifest of the run that is there where it is to be trained for longer."""

    def task(self, data: Path, reporter: Reporter) -> Task:
        """The task with its data, and the learning rate in its configuration."""
        _, kind = FINETUNE_TASKS[self.config.task]
        training = self.config.training
        rate = training.learning_rate or kind.peak_rate(
            self.base, self.config.method, scratch=self.scratch
        )
        config = self.config.replace(training=training.replace(learning_rate=rate).model_dump())
        task: Task = kind(data, self.base, config, scratch=self.scratch, reporter=reporter)
        return task


def _open_start(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    like: str | None,
    reporter: Reporter,
) -> _StartingPoint:
    scratch = start == SCRATCH
    if scratch and config.method != "full":
        raise UsageError(
            f"--method {config.method} keeps most weights as they are, and those of --from scratch "
            "are random; leave --method out"
        )
    base, record = open_model(workspace, _network(workspace, start, like, config.task, reporter))
    if not _suits(base, config):
        raise InputError(
            f"--from {start} is {base.described} and doesn't write text; --task {config.task} "
            "needs a GPT, a Llama or a nanochat model"
        )
    inputs = [record, data_record(data)]
    if isinstance(config, Seq2SeqConfig) and config.data.target is not None:
        inputs.append(data_record(config.data.target, "target"))
    return _StartingPoint(base, scratch, config, inputs)


def _resolve(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    like: str | None,
    name: str | None,
    force: bool,
    reporter: Reporter,
    *,
    extend: bool = False,
) -> _ResolvedFinetune:
    """extend: a finished run of the name that is the same but shorter is gone on with."""
    starting_point = _open_start(workspace, start, data, config, like, reporter)
    identity = Identity.of(
        "finetune", config, starting_point.inputs, scratch=starting_point.scratch
    )
    suffix = SCRATCH if starting_point.scratch else Path(starting_point.inputs[0].name).name
    default = f"{slug(data.name.partition('.')[0], 'data')}-{suffix}"
    if extend:
        run_name, existing, before = find_run(
            workspace, name, default, identity, force=force, note=reporter.note
        )
        return _ResolvedFinetune(
            **vars(starting_point),
            identity=identity,
            name=run_name,
            existing=existing,
            before=before,
        )
    run_name, existing = workspace.match(
        "run", name, default, identity, force=force, note=reporter.note
    )
    return _ResolvedFinetune(
        **vars(starting_point), identity=identity, name=run_name, existing=existing
    )


def _network(
    workspace: Workspace, start: str, like: str | None, task: str, reporter: Reporter
) -> str:
    if start != SCRATCH:
        if like is not None:
            raise UsageError(
                f"--like {like} goes with --from scratch; leave it out, as --from {start} says "
                "which network it is"
            )
        return start
    if like is not None:
        return like

    def pass_over(name: str, error: InputError) -> None:
        reporter.note(f"run {name} is passed over: {error}")

    runs = [run for run in workspace.list("run", pass_over) if _could_learn(run, task)]
    newest = newest_pretrained(runs)
    if newest is None:
        raise InputError(
            "--from scratch needs a pretrained run to take the network and the tokenizer from; "
            "pretrain one, or give a model folder with --like"
        )
    reporter.note(f"the network of {newest.manifest.name}, with random weights")
    return newest.manifest.name


WRITING = ("instruct", "seq2seq")
"""Tasks for networks that write."""


def _could_learn(run: Artefact, task: str) -> bool:
    """Whether a pretrained run's network can learn a task."""
    architecture = ARCHITECTURES.get(run.manifest.config.get("arch", ""))
    return architecture is not None and (task not in WRITING or architecture.kind == "decoder")


def _suits(base: Pretrained, config: FinetuneConfig) -> bool:
    """Whether a model can learn a task; one with a decoder attached can learn more pairs."""
    kinds = ["causal_lm"]
    if isinstance(config, Seq2SeqConfig) and config.style == "decoder":
        kinds.append("seq2seq")
    return config.task not in WRITING or base.kind in kinds
