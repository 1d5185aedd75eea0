"""Finetune: a pretrained model and labelled texts to a classifier."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from llmctl.config import Config
from llmctl.data.keyed import bits, key_of, permute
from llmctl.data.tables import Example
from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.interop.model_folder import (
    MAX_LENGTH,
    ModelFolder,
    write_model_folder,
)
from llmctl.objectives.base import TensorBatch
from llmctl.objectives.classify import (
    Classifier,
    EncodedExample,
    collate,
    encode_examples,
)
from llmctl.stages.inputs import (
    LabelledColumns,
    data_record,
    is_held_out,
    open_model,
    read_labelled,
)
from llmctl.stages.pretrain import newest_pretrained
from llmctl.stages.reporter import Reporter
from llmctl.stages.session import Machine, StopFlag, run_training
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.trainer import Trainer, evaluate
from llmctl.workspace.artefacts import (
    Artefact,
    InputRecord,
    Workspace,
    fingerprint,
    new_manifest,
    slug,
)

SCRATCH = "scratch"
SHORTEST = 8
"""Tokens of an example, special ones included: with fewer next to nothing of a text is left."""
WINDOW_BATCHES = 16
"""Batches sorted by length together: little padding, and neighbours still at random."""


class FinetuneData(LabelledColumns):
    """Which columns hold what, and what is held out."""

    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the examples, chosen by their text's hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of an example, special ones included; longer ones are cut. 0: as pretrained."""

    @field_validator("max_length")
    @classmethod
    def _not_too_short(cls, value: int) -> int:
        if 0 < value < SHORTEST:
            raise ValueError(f"use {SHORTEST} or more, or 0 for as many as in pretraining")
        return value


class FinetuneConfig(Config):
    """Everything that decides a finetuning."""

    task: Literal["classify"] = "classify"
    """What is learned."""
    data: FinetuneData = FinetuneData()
    freeze_layers: int = Field(0, ge=0)
    """The embeddings and this many of the lowest blocks stay as they are; 0: all train."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """In the body and before the output layer."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare classes weigh more, in inverse proportion to their frequency."""
    patience: int = Field(6, ge=0)
    """Validations without a better one before training stops; 0: never early."""
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, warmup=0.1, schedule="linear"
    )
    seed: int = 0
    """Of the head's weights, the order and dropout."""


def peak_rate(width: int, *, scratch: bool) -> float:
    """The learning rate where none is given: 3e-4 for a body up to 128 wide, falling with the
    width to the 5e-5 that Devlin et al. 2018 (§A.3) give for BERT-base, 768 wide. Random weights
    have nothing to lose and further to go: 1e-3, so that the comparison is with their best."""
    return (1e-3 if scratch else 3e-4) * 128 / max(width, 128)


def _with_rate(config: FinetuneConfig, base: ModelFolder, *, scratch: bool) -> FinetuneConfig:
    rate = config.training.learning_rate or peak_rate(base.config.hidden_size, scratch=scratch)
    return config.replace(training=config.training.replace(learning_rate=rate).model_dump())


def finetune(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    *,
    like: str | None = None,
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artefact, bool]:
    """Train a classifier; returns the run, and whether it was finished already.

    start: a run's name, a model folder, or ``scratch``: the same network as ``like`` (by default
    the newest pretrained run) with random weights. data: the labelled examples.
    """
    reporter = reporter or Reporter()
    given = _resolve(workspace, start, data, config, like, name, force, reporter)
    base, found = given.base, given.found
    if found is not None and found.finished:
        return found, True
    config = _with_rate(config, base, scratch=start == SCRATCH)
    examples = read_labelled(data, config.data, reporter)
    task = _Task(examples, base, config, scratch=start == SCRATCH)
    reporter.note(task.describe())
    manifest = new_manifest(
        "run",
        given.name,
        stage="finetune",
        config={
            **config.model_dump(mode="json"),
            "model": base.config.model_dump(mode="json"),
            "from": start,
            "labels": task.labels,
        },
        identity=given.identity,
        inputs=given.inputs,
        seed=config.seed,
    )

    def prepare(machine: Machine, store: CheckpointStore, stop: StopFlag) -> Trainer:
        model = task.build_model().to(machine.device)
        held_out = [collate(group, task.pad) for group in _sorted_groups(task.held_out, 64)]

        def validate() -> dict[str, float]:
            values = evaluate(
                model,
                held_out.__getitem__,
                len(held_out),
                device=machine.device,
                precision=machine.precision,
            )
            # On few examples accuracy has ties, which the loss breaks.
            return {**values, "criterion": 1.0 - values["accuracy"] + 1e-3 * values["loss"]}

        return Trainer(
            model,
            task.batch,
            config.training,
            total_steps=task.total_steps,
            seed=config.seed,
            device=machine.device,
            precision=machine.precision,
            store=store,
            validate=validate if held_out else None,
            eval_every=config.training.eval_every or task.batches_per_epoch,
            patience=config.patience,
            on_best=lambda step: store.save_best(step, model),
            should_stop=stop,
        )

    def export(trainer: Trainer, store: CheckpointStore, folder: Path) -> dict[str, Any]:
        # 0 where nothing was held out: then the last weights are the model.
        if best_step := trainer.progress.best_step:
            trainer.model.load_state_dict(store.load_best(best_step))
        names = {str(number): label for number, label in enumerate(task.labels)}
        extra = {
            "id2label": names,
            "label2id": {label: number for number, label in enumerate(task.labels)},
            "problem_type": "single_label_classification",
            "classifier_dropout": config.dropout,
            MAX_LENGTH: task.max_length,
        }
        write_model_folder(folder, trainer.model, base.tokenizer, extra)
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        return {
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "trainable_parameters": trainable,
            "best_step": best_step,
            "train_examples": len(task.train),
            "validation_examples": len(task.held_out),
        }

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
    given = _resolve(workspace, start, data, config, like, name, force, reporter)
    config = _with_rate(config, given.base, scratch=start == SCRATCH)
    examples = read_labelled(data, config.data, reporter)
    task = _Task(examples, given.base, config, scratch=start == SCRATCH)
    model = task.build_model()
    return {
        "config": config.model_dump(mode="json"),
        "plan": {
            "name": given.name,
            "up_to_date": given.found is not None and given.found.finished,
            "from": start,
            "data": str(data),
            "train_examples": len(task.train),
            "validation_examples": len(task.held_out),
            "classes": len(task.labels),
            "total_steps": task.total_steps,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
    }


@dataclass(frozen=True)
class _Given:
    """What a finetuning starts from, and the run that it is."""

    base: ModelFolder
    inputs: list[InputRecord]
    identity: dict[str, Any]
    name: str
    found: Artefact | None


def _resolve(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    like: str | None,
    name: str | None,
    force: bool,
    reporter: Reporter,
) -> _Given:
    base, record = open_model(workspace, _network(workspace, start, like, reporter))
    inputs = [record, data_record(data)]
    identity = {**config.identity(), "scratch": start == SCRATCH}
    suffix = SCRATCH if start == SCRATCH else Path(record.name).name
    run_name, found = workspace.match(
        "run",
        name,
        f"{slug(data.name.partition('.')[0], 'data')}-{suffix}",
        fingerprint("finetune", identity, inputs),
        force=force,
        note=reporter.note,
    )
    return _Given(base, inputs, identity, run_name, found)


def _network(workspace: Workspace, start: str, like: str | None, reporter: Reporter) -> str:
    if start != SCRATCH:
        if like is not None:
            raise UsageError(
                f"--like {like} goes with --from scratch; leave it out, as --from {start} says "
                "which network it is"
            )
        return start
    if like is not None:
        return like
    newest = newest_pretrained(workspace.list("run"))
    if newest is None:
        raise InputError(
            "--from scratch needs a pretrained run to take the network and the tokenizer from; "
            "pretrain one, or give a model folder with --like"
        )
    reporter.note(f"the network of {newest.manifest.name}, with random weights")
    return newest.manifest.name


class _Task:
    """The examples as batches, and the network to train on them."""

    def __init__(
        self, examples: Sequence[Example], base: ModelFolder, config: FinetuneConfig, scratch: bool
    ) -> None:
        self._base, self._config, self._scratch = base, config, scratch
        counts = Counter(example.label or "" for example in examples)
        self.labels = _in_order(counts)
        if len(self.labels) < 2:
            raise InputError(
                f"the label column has one class only ({self.labels[0]!r}); a classifier needs "
                "two or more: check --label-column"
            )
        layers = base.config.num_layers
        if config.freeze_layers > layers:
            raise ConfigError(
                f"--freeze-layers {config.freeze_layers}: the model has {layers} blocks; "
                f"use at most {layers}"
            )
        self.max_length = min(config.data.max_length or base.max_length, base.config.max_positions)
        self.pad = base.tokenizer.special["pad"]
        held = [is_held_out(example, config.data.validation) for example in examples]
        encoded = encode_examples(
            base.tokenizer,
            examples,
            self.max_length,
            {label: number for number, label in enumerate(self.labels)},
        )
        self.train = [e for e, out in zip(encoded, held, strict=True) if not out]
        self.held_out = [e for e, out in zip(encoded, held, strict=True) if out]
        if not self.train:
            raise InputError("every example fell to validation; give more examples")
        self._lengths = np.asarray([len(example.ids) for example in self.train])
        self.batches_per_epoch = -(-len(self.train) // config.training.batch_size)
        self._counts = counts
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    @property
    def total_steps(self) -> int | None:
        training = self._config.training
        if training.max_steps is not None:
            return training.max_steps
        if training.time_limit is not None:
            return None
        return max(1, math.ceil(training.epochs * self.batches_per_epoch))

    def describe(self) -> str:
        shown = ", ".join(f"{label} {self._counts[label]}" for label in self.labels[:8])
        more = f", … ({len(self.labels)} classes)" if len(self.labels) > 8 else ""
        return (
            f"{len(self.train)} examples to train on, {len(self.held_out)} held out; "
            f"labels: {shown}{more}"
        )

    def build_model(self) -> Classifier:
        config, base = self._config, self._base
        torch.manual_seed(key_of(config.seed, "weights"))
        weights = None
        if config.class_weights == "balanced":
            total = sum(self._counts.values())
            weights = [total / (len(self.labels) * self._counts[label]) for label in self.labels]
        model = base.new_classifier(
            len(self.labels),
            dropout=config.dropout,
            class_weights=weights,
            scratch=self._scratch,
        )
        if config.freeze_layers:
            model.freeze_layers(config.freeze_layers)
        return model

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: random examples of like length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return collate([self.train[i] for i in self._epoch(epoch)[place]], self.pad)

    def _make_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        size = self._config.training.batch_size
        key = key_of(self._config.seed, "order", epoch)
        order = permute(key, len(self.train), np.arange(len(self.train)))
        batches = []
        for start in range(0, len(order), WINDOW_BATCHES * size):
            window = order[start : start + WINDOW_BATCHES * size]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        shuffled = np.argsort(
            bits(key_of(self._config.seed, "deal", epoch), np.arange(len(batches)))
        )
        return [batches[i] for i in shuffled]


def _in_order(counts: Counter[str]) -> list[str]:
    """Label names in order: by number if all are numbers, else by the alphabet."""
    try:
        numbers = {label: float(label) for label in counts}
    except ValueError:
        return sorted(counts)
    if any(map(math.isnan, numbers.values())):  # nan has no place among numbers
        return sorted(counts)
    return sorted(counts, key=lambda label: (numbers[label], label))


def _sorted_groups(examples: Sequence[EncodedExample], size: int) -> list[list[EncodedExample]]:
    ordered = sorted(examples, key=lambda example: len(example.ids))
    return [list(ordered[i : i + size]) for i in range(0, len(ordered), size)]
