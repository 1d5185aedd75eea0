"""Pretrain: shards to a model that has learned the language."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import Field
from torch import nn

from llmctl import tokenizers
from llmctl.config import Config, Seconds, build
from llmctl.errors import ConfigError, UsageError, did_you_mean
from llmctl.interop.model_folder import MAX_LENGTH, write_model_folder
from llmctl.models import ARCHITECTURES
from llmctl.objectives import PRETRAINING
from llmctl.objectives.causal_lm import CausalLM
from llmctl.objectives.pretraining import VALIDATION_SEED, Batches, DataConfig, Pretraining
from llmctl.stages.budget import LEAST_SECONDS, Choice, choose, left_open
from llmctl.stages.extension import find_run
from llmctl.stages.inputs import choose_shards, default_name, pretraining_identity
from llmctl.stages.learned import judged, said_of
from llmctl.stages.reporter import Reporter
from llmctl.stages.run_log import LoggedReporter
from llmctl.stages.session import (
    Machine,
    StopFlag,
    finished_before,
    rehearsal_folder,
    run_training,
)
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed import World, current, joined
from llmctl.training.progress import Progress
from llmctl.training.rehearsal import time_steps
from llmctl.training.trainer import Trainer
from llmctl.training.validation import evaluate
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.manifests import new_manifest

DEFAULT_PRESET = "mini"
LOOKS = 10
"""Validations in a run where ``training.eval_every`` does not say."""
SELDOM = 20
"""Steps between validations at the least, so that a short run does more training than looking."""

WORTH_TRYING = 100
"""Steps of a training from which on a few are tried, to tell whether compiling pays."""
TRIAL_SECONDS = 1.0

M = TypeVar("M", bound=Config)
L = TypeVar("L", bound=Config)
D = TypeVar("D", bound=DataConfig)


class PretrainConfig(Config, Generic[M, L, D]):
    """Everything that decides a pretraining; ``config_for`` knows an architecture's."""

    arch: str
    """The architecture."""
    model: M
    objective: L
    data: D
    training: TrainingConfig = TrainingConfig()
    seed: int = 0
    """Seed of weights, order, dropout and, for BERT, pairs and masks."""
    budget: Seconds | None = Field(None, gt=0)
    """Wall clock from the command's start to the finished model, for which what is not given of
    shape, batch and schedule is chosen."""
    chosen: tuple[str, ...] = ()
    """Keys that the budget chooses; filled in by the command."""


def config_for(arch: str) -> type[PretrainConfig[Any, Any, Any]]:
    """The configuration of an architecture's pretraining.

    Raises UsageError for an unknown architecture.
    """
    # A recipe may give any value: lists compare where a dictionary would want a hash.
    if arch not in list(ARCHITECTURES):
        raise UsageError(
            f"--arch {arch!r} is not known{did_you_mean(str(arch), [*ARCHITECTURES, 'ngram'])}; "
            f"choose one of {', '.join(ARCHITECTURES)}, or ngram, which counts"
        )
    architecture = ARCHITECTURES[arch]
    kind = PRETRAINING[architecture.objective]
    return PretrainConfig[architecture.config, kind.config, kind.data_config]  # type: ignore[name-defined]


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
        PRETRAINING[architecture.objective].defaults,
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
    short, or where the length of the training is given too."""
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
    return config.replace(chosen=left_open(config.arch, preset, *layers))


def shards_of(workspace: Workspace, arch: str, name: str | None, reporter: Reporter) -> Artefact:
    """The shards of a name, or the newest that an architecture can learn from; checked."""
    kind = PRETRAINING[ARCHITECTURES[arch].objective]
    return choose_shards(
        workspace,
        name,
        reporter,
        suits=lambda tokenizer: not kind.missing_roles(tokenizer),
        wanted=f"--arch {arch} (their tokenizer needs tokens for {', '.join(kind.roles)})",
    )


def open_pretraining(
    shards: Artefact, config: PretrainConfig[Any, Any, Any]
) -> tuple[Pretraining[Any, Any], PretrainConfig[Any, Any, Any]]:
    """A pretraining with its data, and the configuration with what follows from the data."""
    tokenizer = tokenizers.load(shards.folder / "tokenizer")
    architecture = ARCHITECTURES[config.arch]
    kind = PRETRAINING[architecture.objective]
    rate = config.training.learning_rate or kind.peak_rate(config.model.hidden_size)
    config = config.replace(
        model=config.model.replace(vocab_size=tokenizer.vocab_size).model_dump(),
        training=config.training.replace(learning_rate=rate).model_dump(),
    )
    pretraining = kind(
        shards.folder,
        tokenizer,
        architecture,
        config.model,
        config.objective,
        config.data,
        config.training.batch_size,
    )
    return pretraining, config


def total_steps(training: TrainingConfig, batches: Batches) -> int | None:
    """Steps in all; None if only the time limits them."""
    if training.max_steps is not None:
        return training.max_steps
    if training.time_limit is not None:
        return None
    return max(1, math.ceil(training.epochs * batches.per_epoch))


@joined()
def pretrain(
    workspace: Workspace,
    config: PretrainConfig[Any, Any, Any],
    *,
    shards_name: str | None = None,
    name: str | None = None,
    force: bool = False,
    begun: float | None = None,
    profile: bool = False,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> tuple[Artefact, bool]:
    """Train a model on shards; returns the run, and whether it was finished already.

    begun: when the command began, by time.perf_counter: a budget counts from then; default now.
    profile: trace some steps. command: that goes on with this run, where the one being run does
    more than that.
    """
    reporter = LoggedReporter(reporter or Reporter())
    begun = time.perf_counter() if begun is None else begun
    shards = shards_of(workspace, config.arch, shards_name, reporter)
    # As it was given: the vocabulary's size follows from the shards.
    identity = pretraining_identity(config, shards)
    run_name, found, before = find_run(
        workspace,
        name,
        default_name(config, shards),
        identity,
        force=force,
        note=reporter.note,
    )
    if found is not None and found.finished and before is None:
        return finished_before(found), True
    world = current()
    choice = None
    if config.budget is not None and found is not None:
        # What was chosen at the start is kept: only the rest of the time is left.
        config = config.replace(**found.manifest.config)
    elif config.budget is not None:
        config, choice = choose_for_budget(workspace, shards, config, begun, reporter, world)
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
        found,
        config.training,
        prepare=prepare,
        export=export,
        reporter=reporter,
        profile=profile,
        expected_seconds=seconds,
        judge=partial(judged, pretraining),
        before=before,
    )
    if (said := said_of(artefact.manifest)) is not None:
        reporter.note(said)
    return artefact, False


def choose_for_budget(
    workspace: Workspace,
    shards: Artefact,
    config: PretrainConfig[Any, Any, Any],
    begun: float,
    reporter: Reporter,
    world: World,
) -> tuple[PretrainConfig[Any, Any, Any], Choice]:
    """The configuration that a budget comes to on this machine; see llmctl/stages/budget.py."""
    with rehearsal_folder(workspace, world) as folder:
        return choose(
            config,
            folder,
            begun=begun,
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
    model = pretraining.build_model(config.seed)
    # The same few batches each time: made once.
    fixed = [held_out(n) for n in range(min(config.data.eval_batches, held_out.per_epoch))]
    if not fixed:
        reporter.note("the shards have no validation documents: training without a look")

    def validate() -> dict[str, float]:
        return evaluate(
            model,
            fixed.__getitem__,
            len(fixed),
            device=machine.device,
            precision=machine.precision,
            world=machine.world,
            should_stop=should_stop,
        )

    return Trainer(
        model,
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
    return training.eval_every or max(SELDOM, (total or 1000) // LOOKS)


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
    """Of the training by a few of its steps; None where it is too short to try some, or gains
    nothing by compiling."""
    if machine.device.type == "cpu" and not pretraining.compile_on_cpu:
        return None
    if config.training.time_limit is not None:
        return config.training.time_limit
    steps = total_steps(config.training, pretraining.batches("train", seed=config.seed))
    if steps is None or steps < WORTH_TRYING:
        return None
    # Nothing is written: the steps end before a checkpoint is due.
    trainer = make_trainer(pretraining, config, machine, CheckpointStore(Path(), 1), Reporter())
    found = time_steps(trainer, TRIAL_SECONDS, give_up=2 * TRIAL_SECONDS)
    del trainer
    gc.collect()  # its memory is wanted again
    return steps * found.seconds_per_step
