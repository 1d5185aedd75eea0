"""Pretrain: shards to a model that has learned the language."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from llmctl import tokenizers
from llmctl.config import Config, build
from llmctl.errors import ConfigError, UsageError, did_you_mean
from llmctl.interop.model_folder import MAX_LENGTH, write_model_folder
from llmctl.models import ARCHITECTURES
from llmctl.objectives import PRETRAINING
from llmctl.objectives.pretraining import VALIDATION_SEED, Batches, DataConfig, Pretraining
from llmctl.stages.inputs import choose_shards
from llmctl.stages.reporter import Reporter
from llmctl.stages.session import Machine, StopFlag, run_training
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.plan import Plan, make_plan
from llmctl.training.precision import choose_device, choose_precision
from llmctl.training.trainer import Progress, Trainer, evaluate
from llmctl.workspace.artefacts import Artefact, Workspace, fingerprint, new_manifest

DEFAULT_PRESET = "mini"
LOOKS = 10
"""Validations in a run where ``training.eval_every`` does not say."""
SELDOM = 20
"""Steps between validations at the least, so that a short run does more training than looking."""

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
    """Of weights, order, dropout and, for BERT, pairs and masks."""


def config_for(arch: str) -> type[PretrainConfig[Any, Any, Any]]:
    """The configuration of an architecture's pretraining.

    Raises UsageError for an unknown architecture.
    """
    # A recipe may give any value: lists compare where a dictionary would want a hash.
    if arch not in list(ARCHITECTURES):
        raise UsageError(
            f"--arch {arch!r} is not known{did_you_mean(str(arch), ARCHITECTURES)}; "
            f"choose one of {', '.join(ARCHITECTURES)}"
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
    preset = preset or DEFAULT_PRESET
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
    return config


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


def find(
    workspace: Workspace,
    config: PretrainConfig[Any, Any, Any],
    shards: Artefact,
    name: str | None,
    *,
    force: bool = False,
    reporter: Reporter,
) -> tuple[str, Artefact | None]:
    """The name of a pretraining's run, and the run where it is begun or done already.

    Raises NameTaken if something else has the name, unless ``force``.
    """
    return workspace.match(
        "run",
        name,
        f"{config.arch}-{shards.manifest.name}",
        # The configuration as it was given: the vocabulary's size follows from the shards.
        fingerprint("pretrain", config.identity(), [shards.as_input("shards")]),
        force=force,
        note=reporter.note,
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


def pretrain(
    workspace: Workspace,
    config: PretrainConfig[Any, Any, Any],
    *,
    shards_name: str | None = None,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> tuple[Artefact, bool]:
    """Train a model on shards; returns the run, and whether it was finished already.

    command: that goes on with this run, where the one being run does more than that.
    """
    reporter = reporter or Reporter()
    shards = shards_of(workspace, config.arch, shards_name, reporter)
    identity = config.identity()
    run_name, found = find(workspace, config, shards, name, force=force, reporter=reporter)
    if found is not None and found.finished:
        return found, True
    pretraining, config = open_pretraining(shards, config)
    manifest = new_manifest(
        "run",
        run_name,
        stage="pretrain",
        config=config.model_dump(mode="json"),
        identity=identity,
        inputs=[shards.as_input("shards")],
        seed=config.seed,
        command=command,
    )

    def prepare(machine: Machine, store: CheckpointStore, stop: StopFlag) -> Trainer:
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
                should_stop=stop,
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
            eval_every=config.training.eval_every or max(SELDOM, (total or 1000) // LOOKS),
            compiled=machine.compiled,
            matrix_flops=machine.matrix_flops,
            world=machine.world,
            should_stop=stop,
        )

    def expected_seconds(device: torch.device, precision: str) -> float | None:
        if config.training.time_limit is not None:
            return config.training.time_limit
        return _estimate(pretraining, config, device, precision).seconds

    def export(model: nn.Module, progress: Progress, folder: Path) -> dict[str, Any]:
        extra = {MAX_LENGTH: config.data.sequence_length}
        write_model_folder(folder, model, pretraining.tokenizer, extra)
        return {"parameters": sum(p.numel() for p in model.parameters())}

    artefact = run_training(
        workspace,
        manifest,
        found,
        config.training,
        prepare=prepare,
        export=export,
        reporter=reporter,
        expected_seconds=expected_seconds,
    )
    return artefact, False


def _estimate(
    pretraining: Pretraining[Any, Any],
    config: PretrainConfig[Any, Any, Any],
    device: torch.device,
    precision: str,
) -> Plan:
    with torch.device("meta"):
        model = pretraining.build_model(config.seed)
    return make_plan(
        model,
        flops_per_token=pretraining.flops_per_token(),
        tokens_per_step=config.data.sequence_length * config.training.batch_size,
        num_layers=config.model.num_layers,
        hidden_size=config.model.hidden_size,
        total_steps=total_steps(config.training, pretraining.batches("train", seed=config.seed)),
        device=device,
        precision=precision,
    )


def plan(
    workspace: Workspace,
    config: PretrainConfig[Any, Any, Any],
    shards_name: str | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """The resolved configuration, and what it will take on this machine."""
    shards = shards_of(workspace, config.arch, shards_name, reporter)
    pretraining, config = open_pretraining(shards, config)
    device = choose_device(config.training.device)
    precision = choose_precision(config.training.precision, device)
    batches = pretraining.batches("train", seed=config.seed)
    estimate = _estimate(pretraining, config, device, precision)
    steps = estimate.total_steps
    seconds = estimate.seconds if steps else config.training.time_limit
    return {
        "config": config.model_dump(mode="json"),
        "plan": {
            "shards": shards.manifest.name,
            "parameters": estimate.parameters,
            "tokens_per_step": estimate.tokens_per_step,
            "steps_per_epoch": batches.per_epoch,
            "total_steps": steps,
            "flops_per_step": estimate.flops_per_token * estimate.tokens_per_step,
            "memory_bytes": estimate.memory_bytes,
            "device": device.type,
            "precision": precision,
            "machine_matrix_flops_per_second": estimate.matrix_flops,
            "expected_seconds": seconds,
        },
    }
