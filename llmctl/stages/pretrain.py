"""Pretrain: shards to a model that has learned the language."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from llmctl.config import build
from llmctl.data.shards.choosing import choose_shards
from llmctl.errors import ConfigError, UsageError, did_you_mean
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.run_log import LoggedReporter
from llmctl.tasks import PRETRAINING
from llmctl.tasks.learned import describe_learning, said_of
from llmctl.tasks.pretraining import (
    VALIDATION_SEED,
    PretrainConfig,
    Pretraining,
    config_for,
    open_pretraining,
    total_steps,
)
from llmctl.tasks.pretraining_runs import default_name, pretraining_identity
from llmctl.training.batches import Objective
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.device import Machine
from llmctl.training.distributed.processes import World, get_world, process_group
from llmctl.training.extension import find_run
from llmctl.training.planning.budget import LEAST_SECONDS, choose_shape
from llmctl.training.planning.choice import Choice
from llmctl.training.planning.ladder import free_fields
from llmctl.training.planning.rehearsal import rehearsal_folder, time_steps
from llmctl.training.progress import Progress
from llmctl.training.run import finished_before, run_training
from llmctl.training.signals import StopFlag
from llmctl.training.trainer import Trainer
from llmctl.training.validation import evaluate
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.manifests import new_manifest

DEFAULT_PRESET = "mini"
EVALS_PER_RUN = 10
"""Validations in a run where ``training.eval_every`` does not say."""
MIN_EVAL_INTERVAL = 20
"""Steps between validations at the least, so that a short run does more training than looking."""

MIN_STEPS_FOR_TRIAL = 100
"""Steps of a training from which on a few are tried, to tell whether compiling pays."""
SPEED_TRIAL_SECONDS = 1.0


def resolve(
    arch: str, preset: str | None, *layers: Mapping[str, Any]
) -> PretrainConfig[Any, Any, Any]:
    """The configuration from a preset and what is laid over it.

    Raises UsageError for an unknown architecture or preset.
    """
    kind = config_for(arch)
    architecture = ARCHITECTURES[arch]
    presets = architecture.presets
    preset_given, preset = preset, preset or DEFAULT_PRESET
    if preset not in list(presets):
        raise UsageError(
            f"--preset {preset!r} is not known{did_you_mean(str(preset), presets)}; "
            f"choose one of {', '.join(presets)}"
        )
    config = build(
        kind,
        {"arch": arch, "model": presets[preset], "objective": {}, "data": {}},
        PRETRAINING[architecture.task]().defaults,
        {"training": architecture.training},
        *layers,
    )
    if config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size}: the vocabulary is that of the shards' "
            "tokenizer; leave it out, or tokenize with another --vocab-size"
        )
    if config.data.sequence_length > config.model.max_positions:
        raise ConfigError(
            f"data.sequence_length {config.data.sequence_length} is longer than "
            f"model.max_positions {config.model.max_positions}; raise the one or lower the other"
        )
    if config.chosen:
        raise ConfigError("chosen is filled in by --budget; leave it out")
    return config if config.budget is None else _with_budget(config, preset_given, *layers)


def _with_budget(
    config: PretrainConfig[Any, Any, Any], preset: str | None, *layers: Mapping[str, Any]
) -> PretrainConfig[Any, Any, Any]:
    """The configuration with the keys that its budget chooses. Raises UsageError where it is too
    short, where the length of the training is given too, or where the architecture has no law."""
    assert config.budget is not None
    if config.budget < LEAST_SECONDS:
        raise UsageError(
            f"--budget {config.budget:g}s is too short: start-up, calibration and the export alone "
            f"take about {LEAST_SECONDS / 2:.0f} s; give at least {LEAST_SECONDS:.0f}s"
        )
    for key in ("time_limit", "max_steps"):
        if (value := getattr(config.training, key)) is not None:
            raise UsageError(
                f"training.{key} {value:g} and --budget {config.budget:g}s both say how long; "
                "leave one of them out"
            )
    if ARCHITECTURES[config.arch].scaling is None:
        known = [name for name, spec in ARCHITECTURES.items() if spec.scaling]
        raise UsageError(
            f"--budget: --arch {config.arch} has no scaling law yet to choose a model by; give "
            f"--preset and --set training.time_limit={config.budget:g}s in its place, or take "
            f"--arch {', '.join(known)}"
        )
    return config.replace(chosen=free_fields(config.arch, preset, *layers))


def shards_of(workspace: Workspace, arch: str, name: str | None, reporter: Reporter) -> Artefact:
    """The shards of a name, or the newest that an architecture can learn from; checked."""
    kind = PRETRAINING[ARCHITECTURES[arch].task]()
    return choose_shards(
        workspace,
        name,
        reporter,
        suits=lambda tokenizer: not kind.missing_roles(tokenizer),
        wanted=f"--arch {arch} (their tokenizer needs tokens for {', '.join(kind.roles)})",
    )


@process_group()
def pretrain(
    workspace: Workspace,
    config: PretrainConfig[Any, Any, Any],
    *,
    shards_name: str | None = None,
    name: str | None = None,
    force: bool = False,
    start_time: float | None = None,
    profile: bool = False,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> tuple[Artefact, bool]:
    """Train a model on shards; returns the run, and whether it was finished already.

    start_time: when the command began, by time.perf_counter: a budget counts from then; default
    now. profile: trace some steps. command: that goes on with this run, where the one being run
    does more than that.
    """
    reporter = LoggedReporter(reporter or Reporter())
    start_time = time.perf_counter() if start_time is None else start_time
    shards = shards_of(workspace, config.arch, shards_name, reporter)
    # As it was given: the vocabulary's size follows from the shards.
    identity = pretraining_identity(config, shards)
    run_name, existing, before = find_run(
        workspace,
        name,
        default_name(config, shards),
        identity,
        force=force,
        note=reporter.note,
    )
    if existing is not None and existing.finished and before is None:
        return finished_before(existing), True
    world = get_world()
    choice = None
    if config.budget is not None and existing is not None:
        # What was chosen at the start is kept: only the rest of the time is left.
        config = config.replace(**existing.manifest.config)
    elif config.budget is not None:
        config, choice = choose_for_budget(workspace, shards, config, start_time, reporter, world)
    pretraining, config = open_pretraining(shards, config)
    manifest = new_manifest(
        "run",
        run_name,
        stage="pretrain",
        config=config.model_dump(mode="json"),
        identity=identity,
        seed=config.seed,
        command=command,
    )
    if choice is not None:
        manifest = manifest.model_copy(update={"summary": {"budget": choice.document()}})

    def prepare(machine: Machine, store: CheckpointStore, stop: StopFlag) -> Trainer:
        return make_trainer(
            pretraining, config, machine, store, reporter, stop, machine.matrix_flops
        )

    def seconds(machine: Machine) -> float | None:
        return expected_seconds(pretraining, config, machine)

    def export(model: nn.Module, progress: Progress, folder: Path) -> dict[str, Any]:
        return export_model(pretraining, config, model, folder)

    artefact = run_training(
        workspace,
        manifest,
        existing,
        config.training,
        prepare=prepare,
        export=export,
        reporter=reporter,
        profile=profile,
        expected_seconds=seconds,
        judge=partial(describe_learning, pretraining),
        before=before,
    )
    if (said := said_of(artefact.manifest)) is not None:
        reporter.note(said)
    return artefact, False


def choose_for_budget(
    workspace: Workspace,
    shards: Artefact,
    config: PretrainConfig[Any, Any, Any],
    start_time: float,
    reporter: Reporter,
    world: World,
) -> tuple[PretrainConfig[Any, Any, Any], Choice]:
    """The configuration that a budget comes to on this machine; see
    llmctl/training/planning/budget.py."""
    with rehearsal_folder(workspace, world) as folder:
        return choose_shape(
            config,
            folder,
            start_time=start_time,
            open_pretraining=partial(open_pretraining, shards),
            make_trainer=make_trainer,
            export=export_model,
            reporter=reporter,
            world=world,
        )


def make_trainer(
    pretraining: Pretraining[Any, Any],
    config: PretrainConfig[Any, Any, Any],
    machine: Machine,
    store: CheckpointStore,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    matrix_flops: float | None = None,
) -> Trainer:
    """The trainer of a pretraining, with fresh weights."""
    train = pretraining.batches("train", seed=config.seed)
    held_out = pretraining.batches("validation", seed=VALIDATION_SEED)
    total = total_steps(config.training, train)
    objective = Objective(pretraining.build_model(config.seed), pretraining.loss)
    # The same few batches each time: made once.
    fixed = [held_out(n) for n in range(min(config.data.eval_batches, held_out.per_epoch))]
    if not fixed:
        reporter.note("the shards have no validation documents: training without a look")

    def validate() -> dict[str, float]:
        return evaluate(
            objective,
            fixed.__getitem__,
            len(fixed),
            device=machine.device,
            precision=machine.precision,
            world=machine.world,
            should_stop=should_stop,
        )

    return Trainer(
        objective,
        train,
        config.training,
        total_steps=total,
        seed=config.seed,
        device=machine.device,
        precision=machine.precision,
        store=store,
        validate=validate if fixed else None,
        eval_every=eval_every(config.training, total),
        compiled=machine.compiled,
        matrix_flops=matrix_flops,
        world=machine.world,
        should_stop=should_stop,
    )


def eval_every(training: TrainingConfig, total: int | None) -> int:
    """Steps between validations."""
    return training.eval_every or max(MIN_EVAL_INTERVAL, (total or 1000) // EVALS_PER_RUN)


def export_model(
    pretraining: Pretraining[Any, Any],
    config: PretrainConfig[Any, Any, Any],
    model: nn.Module,
    folder: Path,
) -> dict[str, Any]:
    """Write the model folder; returns figures for the summary."""
    extra = {MAX_LENGTH: config.data.sequence_length}
    tokenizer = pretraining.tokenizer
    if isinstance(model, CausalLM):  # every document has begun so
        tokenizer = tokenizer.for_decoder()
    write_model_folder(folder, model, tokenizer, extra)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def expected_seconds(
    pretraining: Pretraining[Any, Any], config: PretrainConfig[Any, Any, Any], machine: Machine
) -> float | None:
    """Seconds of the training by a few of its steps; None where it is too short to try some, or
    gains nothing by compiling."""
    if machine.device.type == "cpu" and not pretraining.compile_on_cpu:
        return None
    if config.training.time_limit is not None:
        return config.training.time_limit
    steps = total_steps(config.training, pretraining.batches("train", seed=config.seed))
    if steps is None or steps < MIN_STEPS_FOR_TRIAL:
        return None
    # Nothing is written: the steps end before a checkpoint is due.
    trainer = make_trainer(pretraining, config, machine, CheckpointStore(Path(), 1), Reporter())
    timings = time_steps(trainer, SPEED_TRIAL_SECONDS, give_up=2 * SPEED_TRIAL_SECONDS)
    del trainer
    gc.collect()  # its memory is wanted again
    return steps * timings.seconds_per_step
