"""Pretrain: shards to a model that has learned the language."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from llmctl import tokenizers
from llmctl.config import Config, build
from llmctl.data.chunks import Chunks
from llmctl.data.keyed import key_of
from llmctl.data.packing import PackedBatches
from llmctl.data.shards import ShardReader
from llmctl.errors import ConfigError, InputError, UsageError, did_you_mean
from llmctl.interop.model_folder import MAX_LENGTH, write_model_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.bert import BertConfig
from llmctl.objectives.base import TensorBatch
from llmctl.objectives.masked_lm import MaskedLM, MaskedLMConfig, Vocabulary, collate
from llmctl.stages.reporter import Reporter
from llmctl.stages.session import Machine, StopFlag, run_training
from llmctl.tokenizers import Tokenizer
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.plan import plan_masked_lm
from llmctl.training.precision import choose_device, choose_precision
from llmctl.training.trainer import Trainer, evaluate
from llmctl.workspace.artefacts import Artefact, Workspace, fingerprint, new_manifest

DEFAULT_PRESET = "mini"
LOOKS = 10
"""Validations in a run where ``training.eval_every`` does not say."""
SELDOM = 20
"""Steps between validations at the least, so that a short run does more training than looking."""
VALIDATION_SEED = 0
"""Validation draws its masks from this, whatever the run's seed: losses stay comparable."""


class DataConfig(Config):
    """How documents become rows."""

    sequence_length: int = Field(128, ge=8)
    """Tokens in a row, special ones included."""
    eval_batches: int = Field(16, ge=1)
    """Batches of validation text looked at each time."""


class PretrainConfig(Config):
    """Everything that decides a pretraining."""

    arch: str = "bert"
    """The architecture."""
    model: BertConfig = BertConfig()
    objective: MaskedLMConfig = MaskedLMConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    seed: int = 0
    """Of weights, order, pairs, masks and dropout."""


def resolve(arch: str, preset: str | None, *layers: Mapping[str, Any]) -> PretrainConfig:
    """The configuration from a preset and what is laid over it.

    Raises UsageError for an unknown architecture or preset.
    """
    # A recipe may give any value: lists compare where a dictionary would want a hash.
    if arch not in list(ARCHITECTURES):
        raise UsageError(
            f"--arch {arch!r} is not known{did_you_mean(str(arch), ARCHITECTURES)}; "
            f"choose one of {', '.join(ARCHITECTURES)}"
        )
    presets = ARCHITECTURES[arch].presets
    preset = preset or DEFAULT_PRESET
    if preset not in list(presets):
        raise UsageError(
            f"--preset {preset!r} is not known{did_you_mean(str(preset), presets)}; "
            f"choose one of {', '.join(presets)}"
        )
    config = build(PretrainConfig, {"arch": arch, "model": presets[preset]}, *layers)
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


def choose_shards(workspace: Workspace, name: str | None, reporter: Reporter) -> Artefact:
    """The shards of a name, or the newest that suit BERT; their digests are checked.

    Raises InputError if there are none.
    """
    if name is not None:
        shards = workspace.get("shards", name)
    else:
        candidates = [shards for shards in workspace.list("shards") if _suits(shards)]
        if not candidates:
            raise InputError(
                f"workspace {workspace.root} has no shards that suit BERT; make some: "
                "llmctl tokenize FILE …"
            )
        shards = candidates[-1]
        if len(candidates) > 1:
            reporter.note(f"shards: {shards.manifest.name} (the newest)")
    shards.verify()
    return shards


def _suits(shards: Artefact) -> bool:
    try:
        return not missing_roles(tokenizers.load(shards.folder / "tokenizer"))
    except InputError:  # damaged; named outright, they get the error
        return False


def peak_rate(width: int) -> float:
    """The learning rate where none is given: 2e-3 for a body up to 128 wide, then in inverse
    proportion to the width (Yang et al. 2022, μP): a step changes each layer's output as much."""
    return 2e-3 * 128 / max(width, 128)


class Pretraining:
    """A pretraining with its data, ready to be trained or evaluated."""

    def __init__(self, shards: Artefact, config: PretrainConfig) -> None:
        self.tokenizer = tokenizers.load(shards.folder / "tokenizer")
        rate = config.training.learning_rate or peak_rate(config.model.hidden_size)
        self.config = config.replace(
            model=config.model.replace(vocab_size=self.tokenizer.vocab_size).model_dump(),
            training=config.training.replace(learning_rate=rate).model_dump(),
        )
        self.vocabulary = vocabulary_of(self.tokenizer)
        self._shards = shards

    def batches(self, split: str, *, seed: int) -> PackedBatches:
        """The batches of a split: endless and shuffled for training, one pass for validation."""
        config = self.config
        overhead = 3 if config.objective.next_sentence else 2
        reader = ShardReader(self._shards.folder, split)
        chunks = Chunks(
            reader,
            config.data.sequence_length - overhead,
            seed=seed,
            shuffle=split == "train",
        )
        if split == "train" and not chunks.count:
            raise InputError(
                f"shards {self._shards.manifest.name} have no training documents; "
                "tokenize more text, or with a smaller --validation"
            )
        return PackedBatches(
            chunks,
            sequence_length=config.data.sequence_length,
            batch_size=config.training.batch_size,
            overhead=overhead,
            seed=seed,
            repeat=split == "train",
        )

    def collate(self, batches: PackedBatches, number: int, *, seed: int) -> TensorBatch:
        """Batch ``number``: masked, paired, packed."""
        refs, rows = batches.batch(number)
        return collate(
            batches.chunks,
            refs,
            rows,
            config=self.config.objective,
            vocabulary=self.vocabulary,
            sequence_length=self.config.data.sequence_length,
            seed=seed,
        )

    def build_model(self) -> MaskedLM:
        """The model with fresh weights, drawn from the run's seed."""
        torch.manual_seed(key_of(self.config.seed, "weights"))
        body = ARCHITECTURES[self.config.arch].model(self.config.model)
        return MaskedLM(body, next_sentence=self.config.objective.next_sentence)  # type: ignore[arg-type]

    def total_steps(self, batches: PackedBatches) -> int | None:
        """Steps in all; None if only the time limits them."""
        training = self.config.training
        if training.max_steps is not None:
            return training.max_steps
        if training.time_limit is not None:
            return None
        return max(1, math.ceil(training.epochs * batches.batches_per_epoch))


def missing_roles(tokenizer: Tokenizer) -> list[str]:
    """The special tokens of BERT that a tokenizer lacks."""
    return [role for role in ("cls", "sep", "mask", "pad") if role not in tokenizer.special]


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """What masking needs. Raises InputError if the tokenizer lacks one of BERT's tokens."""
    missing = missing_roles(tokenizer)
    if missing:
        raise InputError(
            f"the tokenizer has no token for {', '.join(missing)}, which BERT needs; learn one "
            "with `llmctl tokenize --tokenizer wordpiece`"
        )
    return Vocabulary(
        cls=tokenizer.special["cls"],
        sep=tokenizer.special["sep"],
        mask=tokenizer.special["mask"],
        pad=tokenizer.special["pad"],
        ordinary=tokenizer.ordinary,
        continuation=tokenizer.continuation,
    )


def pretrain(
    workspace: Workspace,
    config: PretrainConfig,
    *,
    shards_name: str | None = None,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artefact, bool]:
    """Train a model on shards; returns the run, and whether it was finished already."""
    reporter = reporter or Reporter()
    shards = choose_shards(workspace, shards_name, reporter)
    inputs = [shards.as_input("shards")]
    # As it was given: the vocabulary's size follows from the shards.
    identity = config.identity()
    run_name, found = workspace.match(
        "run",
        name,
        f"{config.arch}-{shards.manifest.name}",
        fingerprint("pretrain", identity, inputs),
        force=force,
        note=reporter.note,
    )
    if found is not None and found.finished:
        return found, True
    pretraining = Pretraining(shards, config)
    config = pretraining.config
    manifest = new_manifest(
        "run",
        run_name,
        stage="pretrain",
        config=config.model_dump(mode="json"),
        identity=identity,
        inputs=inputs,
        seed=config.seed,
    )

    def prepare(machine: Machine, store: CheckpointStore, stop: StopFlag) -> Trainer:
        train = pretraining.batches("train", seed=config.seed)
        held_out = pretraining.batches("validation", seed=VALIDATION_SEED)
        total = pretraining.total_steps(train)
        model = pretraining.build_model().to(machine.device)
        looks = min(config.data.eval_batches, held_out.batches_per_epoch)
        # The same few batches each time: made once.
        fixed = [
            pretraining.collate(held_out, number, seed=VALIDATION_SEED)
            for number in range(looks if held_out.chunks.count else 0)
        ]
        if not fixed:
            reporter.note("the shards have no validation documents: training without a look")

        def validate() -> dict[str, float]:
            return evaluate(
                model,
                fixed.__getitem__,
                len(fixed),
                device=machine.device,
                precision=machine.precision,
            )

        return Trainer(
            model,
            partial(pretraining.collate, train, seed=config.seed),
            config.training,
            total_steps=total,
            seed=config.seed,
            device=machine.device,
            precision=machine.precision,
            store=store,
            validate=validate if fixed else None,
            eval_every=config.training.eval_every or max(SELDOM, (total or 1000) // LOOKS),
            should_stop=stop,
        )

    def export(trainer: Trainer, store: CheckpointStore, folder: Path) -> dict[str, Any]:
        extra = {MAX_LENGTH: config.data.sequence_length}
        write_model_folder(folder, trainer.model, pretraining.tokenizer, extra)
        return {"parameters": sum(p.numel() for p in trainer.model.parameters())}

    artefact = run_training(
        workspace,
        manifest,
        found,
        config.training,
        prepare=prepare,
        export=export,
        reporter=reporter,
    )
    return artefact, False


def plan(
    workspace: Workspace, config: PretrainConfig, shards_name: str | None, reporter: Reporter
) -> dict[str, Any]:
    """The resolved configuration, and what it will take on this machine."""
    shards = choose_shards(workspace, shards_name, reporter)
    pretraining = Pretraining(shards, config)
    config = pretraining.config
    device = choose_device(config.training.device)
    precision = choose_precision(config.training.precision, device)
    batches = pretraining.batches("train", seed=config.seed)
    with torch.device("meta"):
        model = pretraining.build_model()
    estimate = plan_masked_lm(
        model,
        config.model,
        sequence_length=config.data.sequence_length,
        batch_size=config.training.batch_size,
        mask_rate=config.objective.mask_rate,
        total_steps=pretraining.total_steps(batches),
        device=device,
        precision=precision,
    )
    steps = estimate.total_steps
    seconds = steps * estimate.seconds_per_step if steps else config.training.time_limit
    return {
        "config": config.model_dump(mode="json"),
        "plan": {
            "shards": shards.manifest.name,
            "parameters": estimate.parameters,
            "tokens_per_step": estimate.tokens_per_step,
            "steps_per_epoch": batches.batches_per_epoch,
            "total_steps": steps,
            "flops_per_step": estimate.flops_per_token * estimate.tokens_per_step,
            "memory_bytes": estimate.memory_bytes,
            "device": device.type,
            "precision": precision,
            "machine_matrix_flops_per_second": estimate.matrix_flops,
            "expected_seconds": seconds,
        },
    }


def newest_pretrained(runs: Sequence[Artefact]) -> Artefact | None:
    """The newest finished pretraining of some runs, oldest first."""
    done = [run for run in runs if run.finished and run.manifest.stage == "pretrain"]
    return done[-1] if done else None
