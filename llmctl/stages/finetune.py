"""Finetune: a pretrained model and labelled texts to a classifier."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from llmctl.config import Config
from llmctl.data.duplicates import text_hash
from llmctl.data.keyed import bits, key_of, permute
from llmctl.data.tables import Example, read_examples, resolve_columns
from llmctl.errors import ConfigError, InputError
from llmctl.interop.model_folder import ModelFolder, read_model_folder, write_model_folder
from llmctl.objectives.base import TensorBatch
from llmctl.objectives.classify import (
    Classifier,
    EncodedExample,
    collate,
    start_from,
    with_special_tokens,
)
from llmctl.stages.pretrain import newest_pretrained
from llmctl.stages.reporter import Reporter
from llmctl.stages.session import Machine, StopFlag, run_training
from llmctl.tokenizers import Tokenizer
from llmctl.training.checkpoints import CheckpointStore, read_tensors, write_tensors
from llmctl.training.config import TrainingConfig
from llmctl.training.trainer import Trainer, evaluate
from llmctl.workspace.artefacts import (
    Artefact,
    InputRecord,
    Workspace,
    fingerprint,
    new_manifest,
)
from llmctl.workspace.files import published_folder, sha256_file

SCRATCH = "scratch"
WINDOW_BATCHES = 16
"""Batches sorted by length together: little padding, and neighbours still at random."""


class FinetuneData(Config):
    """Which columns hold what, and what is held out."""

    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    encoding_errors: Literal["strict", "replace"] = "strict"
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the examples, chosen by their text's hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of an example, special ones included; longer ones are cut. 0: as pretrained."""


class FinetuneConfig(Config):
    """Everything that decides a finetuning."""

    task: Literal["classify"] = "classify"
    data: FinetuneData = FinetuneData()
    freeze_layers: int = Field(0, ge=0)
    """The embeddings and this many of the lowest blocks stay as they are; 0: all train."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """In the body and before the output layer."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare classes weigh more, in inverse proportion to their frequency."""
    patience: int = Field(4, ge=0)
    """Validations without a better one before training stops; 0: never early."""
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, learning_rate=3e-4, warmup=0.1, schedule="linear"
    )
    seed: int = 0


def finetune(
    workspace: Workspace,
    start: str,
    data: Path,
    config: FinetuneConfig,
    *,
    like: str | None = None,
    name: str | None = None,
    force: bool = False,
    resume_command: str = "the same command",
    reporter: Reporter | None = None,
) -> tuple[Artefact, bool]:
    """Train a classifier; returns the run, and whether it was finished already.

    start: a run's name, a model folder, or ``scratch``: the same network as ``like`` (by default
    the newest pretrained run) with random weights. data: the labelled examples.
    """
    reporter = reporter or Reporter()
    base, record = open_model(workspace, _network(workspace, start, like, reporter))
    if not data.is_file():
        raise InputError(f"--data {data}: no such file")
    inputs = [
        record,
        InputRecord(role="data", name=str(data.resolve()), digest=sha256_file(data)),
    ]
    identity = {**config.identity(), "scratch": start == SCRATCH}
    suffix = "scratch" if start == SCRATCH else record.name.rpartition("/")[2]
    run_name, found = workspace.match(
        "run",
        name,
        f"{data.name.partition('.')[0]}-{suffix}".replace(" ", "-"),
        fingerprint("finetune", identity, inputs),
        force=force,
    )
    if found is not None and found.finished:
        return found, True
    examples = read_labelled(data, config.data, reporter)
    task = _Task(examples, base, config, scratch=start == SCRATCH)
    reporter.note(task.describe())
    manifest = new_manifest(
        "run",
        run_name,
        stage="finetune",
        config={
            **config.model_dump(mode="json"),
            "model": base.config.model_dump(mode="json"),
            "from": start,
            "labels": task.labels,
        },
        identity=identity,
        inputs=inputs,
        seed=config.seed,
    )

    def prepare(folder: Path, machine: Machine, store: CheckpointStore, stop: StopFlag) -> Trainer:
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

        def keep_best(step: int) -> None:
            with published_folder(folder / "best") as best:
                write_tensors(best / "model.safetensors", model.state_dict())

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
            on_best=keep_best,
            should_stop=stop,
        )

    def export(trainer: Trainer, folder: Path) -> dict[str, Any]:
        best = workspace.path("run", run_name) / "best" / "model.safetensors"
        if best.exists():
            trainer.model.load_state_dict(read_tensors(best))
        names = {str(number): label for number, label in enumerate(task.labels)}
        extra = {
            "id2label": names,
            "label2id": {label: number for number, label in enumerate(task.labels)},
            "problem_type": "single_label_classification",
            "classifier_dropout": config.dropout,
            "llmctl_max_length": task.max_length,
        }
        write_model_folder(folder, trainer.model, base.tokenizer, extra)
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        return {
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "trainable_parameters": trainable,
            "best_step": trainer.progress.best_step,
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
        resume_command=resume_command,
        reporter=reporter,
    )
    return artefact, False


def _network(workspace: Workspace, start: str, like: str | None, reporter: Reporter) -> str:
    if start != SCRATCH:
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


def open_model(workspace: Workspace, given: str) -> tuple[ModelFolder, InputRecord]:
    """The model of a run's name or of a folder; a run's files are checked by their digests.

    Raises InputError if there is none or it is not whole.
    """
    path = Path(given)
    if given not in workspace.names("run") and (path / "config.json").is_file():
        folder = read_model_folder(path)
        return folder, InputRecord(
            role="model", name=str(path.resolve()), digest=sha256_file(path / "model.safetensors")
        )
    run = workspace.get("run", given)
    if not run.finished:
        raise InputError(
            f"run {given} is not finished; run its command again to finish it "
            f"(`llmctl status {given}` shows it)"
        )
    run.verify("model/")
    return read_model_folder(run.folder / "model"), run.as_input("model")


def read_labelled(data: Path, columns: FinetuneData, reporter: Reporter) -> list[Example]:
    """The labelled examples of a file. Raises InputError if there are none."""
    resolved = resolve_columns(
        data,
        text_column=columns.text_column,
        text_pair_column=columns.text_pair_column,
        label_column=columns.label_column,
        need_label=True,
        encoding_errors=columns.encoding_errors,
    )
    reporter.note(f"{data.name}: {resolved.describe()}")
    examples = list(read_examples(data, resolved, encoding_errors=columns.encoding_errors))
    blank = [example for example in examples if not example.text]
    if blank:
        reporter.note(f"left out {len(blank)} rows without text (the first: {blank[0].source})")
    examples = [example for example in examples if example.text]
    if not examples:
        raise InputError(f"{data} has no labelled texts")
    return examples


def encode_examples(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_length: int,
    number_of: dict[str, int] | None = None,
) -> list[EncodedExample]:
    """Examples as ids with special tokens; their labels by number where the names are given."""
    texts = [example.text for example in examples]
    pairs = [example.text_pair or "" for example in examples]
    ids, lengths = tokenizer.encode_batch([*texts, *pairs])
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    return [
        with_special_tokens(
            parts[row],  # type: ignore[arg-type]
            parts[row + len(examples)] if example.text_pair is not None else None,  # type: ignore[arg-type]
            cls=tokenizer.special["cls"],
            sep=tokenizer.special["sep"],
            max_length=max_length,
            label=number_of[example.label or ""] if number_of else 0,
        )
        for row, example in enumerate(examples)
    ]


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
        limit = round(config.data.validation * 2**64)
        held = [
            text_hash(f"{example.text}\x1f{example.text_pair or ''}") < limit
            for example in examples
        ]
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
        body = base.architecture.model(base.config.replace(dropout=config.dropout))
        model = start_from(
            body,  # type: ignore[arg-type]
            None if self._scratch else base.tensors,
            len(self.labels),
            dropout=config.dropout,
            class_weights=weights,
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
        return sorted(counts, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(counts)


def _sorted_groups(examples: Sequence[EncodedExample], size: int) -> list[list[EncodedExample]]:
    ordered = sorted(examples, key=lambda example: len(example.ids))
    return [list(ordered[i : i + size]) for i in range(0, len(ordered), size)]
