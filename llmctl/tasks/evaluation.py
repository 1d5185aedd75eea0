"""What every kind of evaluation is given, and what it gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import nn

from llmctl.config import ColumnName, Config
from llmctl.data.text.decoding import Encoding, Header, ReadConfig, ReadOptions
from llmctl.data.text.input_files import data_record
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import MODEL, Report
from llmctl.inference.decoding.config import LARGEST_POWER, MOST_AT_ONCE
from llmctl.inference.templates import Verbalizer, is_written_out
from llmctl.inference.weights import WeightType
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.grpo.config import MeasuredReward
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.pretraining import VALIDATION_SEED, PretrainConfig, config_for, open_pretraining
from llmctl.training.batches import Objective
from llmctl.training.distributed.processes import get_world
from llmctl.training.validation import evaluate
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import sha256_json
from llmctl.workspace.manifests import InputRecord, Manifest

COMPARED = "compared with"
"""The role of further models among a report's inputs."""


def _shot_counts(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


ShotCounts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_shot_counts)]
"""Whole numbers: ``0,1,4``, or a list of them in a recipe."""


class EvaluateConfig(Config):
    """What is measured, and how much of it."""

    task: (
        Literal["perplexity", "lambada", "multiple-choice", "blimp", "preference", "reward"] | None
    ) = None
    """What a language model is measured on. Unset: what the data's columns tell; perplexity where
    they tell nothing."""
    rewards: MeasuredReward = MeasuredReward()
    """What answers are worth."""
    suite: Literal["blimp", "glue", "memory", "overlap", "bias"] | None = None
    """A published set of tests, of which ``data`` is the folder; with memory a file of canaries, or
    nothing; with bias a set's files, or a classifier's texts; with overlap any test."""
    contamination: bool = False
    """Whether the report says how much of the data stood in the training text."""
    protocol: Literal["turc", "babylm"] = "turc"
    """With the suite glue: how its tasks are learned."""
    seeds: int = Field(5, ge=1)
    """With the suite glue: trainings of each task with the settings that are chosen."""
    harness: str | None = None
    """Tasks of lm-evaluation-harness, with commas between."""
    num_fewshot: int | None = Field(None, ge=0)
    """Solved examples before each question of the harness. Unset: as the task says."""
    apply_chat_template: bool = False
    """Whether the harness's questions are written as turns of a chat, by the model's template."""
    limit: int | None = Field(None, ge=1)
    """With a suite or the harness: so many examples of each of its sets, for a quick look."""
    scoring: Literal["causal", "masked", "within-word"] | None = None
    """How whole texts are scored: causal, from left to right; masked, by hiding each token in turn;
    within-word, hiding what follows it in its word as well. Unset: as the model was trained."""
    text_column: ColumnName | None = None
    """The text's column; several are written a,b. Unset: as in finetuning."""
    text_pair_column: ColumnName | None = None
    """The second text's column. Unset: as in finetuning."""
    label_column: ColumnName | None = None
    """The label's column. Unset: as in finetuning."""
    source_column: ColumnName | None = None
    """The source's column, for a model that writes from sources. Unset: as in finetuning."""
    target_column: ColumnName | None = None
    """The target's column, for a model that writes from sources. Unset: as in finetuning."""
    negative_column: ColumnName | None = None
    """Columns of texts that don't belong to the text, for an embedder. Unset: those called negative
    or the like."""
    score_column: ColumnName | None = None
    """The column of a number that says how alike two texts are, for an embedder. Unset: one called
    score, similarity or the like."""
    widths: ShotCounts = ()
    """Widths at which an embedder is measured too, by the first coordinates of its vectors."""
    encoding: Encoding | None = None
    """Encoding of text files. Unset: as in training."""
    encoding_errors: Literal["strict", "replace"] | None = None
    """What a byte that is not in the encoding does. Unset: as in training."""
    header: Header | None = None
    """Whether a CSV's first row names its columns. Unset: as in training."""
    document: Literal["auto", "file", "paragraph", "line"] = "auto"
    """What a document is in plain text whose perplexity is measured; auto: a file, or pieces of a
    long one."""
    stride: int | None = Field(None, ge=1)
    """Tokens by which the window of a perplexity moves on; unset: half of it."""
    shots: ShotCounts = Field((0,), min_length=1)
    """Solved examples in a prompt; several numbers give a row each."""
    score: Literal["plain", "tokens", "bytes", "pmi"] = "plain"
    """What chooses an answer: its log-probability, that for each token or byte, or how much the
    question raises it."""
    labels: Verbalizer = Field({})
    """How a template's labels are written: 1=world,2=sports, or their words alone. Unset: as its
    verbalizer says, or as they are."""
    baselines: bool = True
    """Measure what is simpler beside the model: for classes the majority and TF-IDF with logistic
    regression, for perplexity an n-gram model of the same shards if the workspace has one."""
    resamples: int = Field(1000, ge=1)
    """Resamples of the bootstrap that gives the intervals."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens scored. Unset: all of a language model's text, 2,000 for a pseudo-perplexity, where
    each costs a forward pass."""
    num_beams: int = Field(4, ge=1, le=MOST_AT_ONCE)
    """Beams by which a model writes from sources; 1: the likeliest token always."""
    length_penalty: float = Field(1.0, ge=-LARGEST_POWER, le=LARGEST_POWER)
    """Power of a text's length that divides its score in beam search: above 0, long texts gain."""
    max_new_tokens: int = Field(128, ge=1)
    """Tokens that are written from a source at most."""
    batch_size: int = Field(256, ge=1)
    """Texts that are written together, each beam counted."""
    dtype: WeightType = "fp32"
    """Number format of a language model's weights; a perplexity stands beside
    that of fp32."""
    device: str = "auto"
    """Device that computes; auto: the accelerator if there is one."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap, of the baselines, and of the examples in prompts."""

    def read_config(self, trained: Mapping[str, Any] | None = None) -> ReadConfig:
        """How data is read: as given, else as in a training whose ``data`` options are given."""
        given = self.model_dump(include={*ReadConfig.model_fields}, exclude_none=True)
        known = {k: v for k, v in (trained or {}).items() if k in ReadConfig.model_fields}
        return ReadConfig(**{**known, **given})

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise ValueError("length_penalty is for num_beams 2 or more; leave one of them out")
        return self


@dataclass(frozen=True)
class Files:
    """What a model is measured on."""

    data: Path | None = None
    """Labelled texts, questions or text; None: the validation part of the run's shards."""
    template: Path | str | None = None
    """A template that asks about the rows of ``data``: its file, or written out."""
    examples: Path | None = None
    """Solved examples for the template's prompts."""
    target: Path | None = None
    """References, line by line, where ``data`` is plain text with sources."""
    templates: Path | None = None
    """Templates to choose from."""
    dev: Path | None = None
    """Rows by which one of them is chosen."""
    include: Path | None = None
    """A folder of further tasks for the harness."""
    terms: Path | None = None
    """Pairs of terms that are swapped, for the bias of a classifier."""


class Evaluator(ABC):
    """A way of measuring models: on what, by which figures, and how these are shown.

    Made, it has checked what it was given, found its data and computed nothing.
    """

    kinds: ClassVar[tuple[str, ...]]
    """What models do that it is for."""
    reports: ClassVar[tuple[str, ...]]
    """Kinds of report that it makes."""
    measures_bias: ClassVar[bool] = False
    """Whether its reports tell how fair a model is, and not how good."""
    finetune: Callable[[str, Path, Any, str], OpenedModel] | None = None
    """Finetunes a model, by name, on data, by a configuration, to a run: for ways of measuring that
    train, where the command sets it."""

    def __init__(
        self,
        workspace: Workspace,
        models: Mapping[str, OpenedModel],
        files: Files,
        config: EvaluateConfig,
    ) -> None:
        """models: ``model`` first, and those that it is compared with.

        Raises UsageError where options don't go with the model or with one another, InputError for
        a file that isn't there.
        """
        self.workspace, self.files, self.config = workspace, files, config
        self.models = dict(models)
        self.data: InputRecord | None = None
        """The record of ``--data``."""
        self.shards: Artefact | None = None
        """Those whose validation part is measured on."""
        self.notes: list[str] = []
        """What was noticed while the data was chosen."""
        self.choose()

    @classmethod
    def suits(cls, files: Files, config: EvaluateConfig) -> bool:
        """Whether files and options ask for this way, of several for the same models."""
        return True

    @classmethod
    def for_model(cls, model: OpenedModel) -> type[Self]:
        """The class that measures a model, where that is one of several."""
        return cls

    @abstractmethod
    def choose(self) -> None:
        """Check what was given, and find the data."""

    @abstractmethod
    def run(self, reporter: Reporter) -> Report:
        """Measure; the report has the notes of this and no name yet."""

    @staticmethod
    @abstractmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        """What the report has to show. Raises some error where it lacks what its kind has."""

    @property
    def model(self) -> OpenedModel:
        """The model that is measured."""
        return self.models[MODEL]

    @property
    def others(self) -> list[OpenedModel]:
        """What it is compared with."""
        return [model for name, model in self.models.items() if name != MODEL]

    @property
    def path(self) -> Path:
        """The file or folder of ``--data``."""
        assert self.files.data is not None
        return self.files.data

    def read_options(self, reporter: Reporter, *, as_trained: bool = False) -> ReadOptions:
        """How the data is read. as_trained: what is not given is as in the model's finetuning."""
        options = self.model.options if as_trained else None
        return self.config.read_config(options).read_options(reporter.note)

    def note_for(self, reporter: Reporter, model: OpenedModel) -> Any:
        """Tells a note of a model's columns, with its name where there are several."""
        before = f"{model.name}: " if self.others else ""
        return lambda text: reporter.note(before + text)

    def inputs(self) -> list[InputRecord]:
        """All that the report is made from. Raises InputError for a file that isn't there."""
        records = [self.model.record, *([self.data] if self.data else [])]
        for role in ("template", "templates", "dev", "examples", "target", "terms"):
            if (given := getattr(self.files, role)) is not None:
                records.append(_record(given, role))
        if self.shards is not None:
            records.append(self.shards.as_input("shards"))
        others = (other.record.model_copy(update={"role": COMPARED}) for other in self.others)
        return [*records, *others]

    def refuse(self, why: str, *options: str) -> None:
        """Raises UsageError for the first of some options that is given. why: what to say of it and
        the model."""
        for option in options:
            value = getattr(self.files if hasattr(self.files, option) else self.config, option)
            if value not in (None, "fp32"):
                raise UsageError(f"--{option} {why.format(self.model.name)}")


def check_asked(files: Files) -> None:
    """Raises UsageError unless a template has rows to ask about, and several rows to be chosen
    by."""
    option = "template" if files.templates is None else "templates"
    if files.data is None:
        raise UsageError(f"--{option} {getattr(files, option)} asks about --data FILE; give it")
    if files.template is not None and files.templates is not None:
        raise UsageError("--template gives one, and --templates some to choose from; give either")
    if (files.templates is None) != (files.dev is None):
        raise UsageError(
            "--templates FILE and --dev FILE go together: a template is chosen by labelled rows "
            "that are not those it is measured on"
        )


def _record(given: Path | str, role: str) -> InputRecord:
    if is_written_out(given):
        return InputRecord(role=role, name=str(given), digest=sha256_json(given))
    return data_record(Path(given), role)


FOR_SOURCES = "is for models finetuned with --task seq2seq, and {} is none"
FOR_LANGUAGE_MODELS = (
    "is for language models, and {} is not one; give --from a GPT, a Llama, a nanochat, an "
    "n-gram or a masked model"
)
"""Why an option is refused."""
FOR_WRITERS = "is for models that write text, and {} is none; leave it out"
"""Why ``--dtype`` is refused."""


def trained_config(manifest: Manifest) -> PretrainConfig[Any, Any, Any]:
    """The configuration of a neural model's pretraining."""
    config = manifest.config
    # The vocabulary's size follows from the shards.
    model = {**config["model"], "vocab_size": 0}
    kind = config_for(config["arch"], config.get("task"))
    return kind.model_validate({**config, "model": model})


def validation_losses(
    model: nn.Module,
    shards: Artefact,
    config: PretrainConfig[Any, Any, Any],
    device: torch.device,
    *,
    limit: int | None = None,
    progress: Any,
) -> tuple[dict[str, float], PretrainConfig[Any, Any, Any]]:
    """Losses and metrics of shards' validation part as training takes it, and the configuration
    with what follows from the data. limit: tokens that are enough. progress: is told of each
    batch, by its number and how many there are.

    Raises InputError if there are no validation documents.
    """
    pretraining = open_pretraining(shards, config)
    config = pretraining.config
    batches = pretraining.batches("validation", seed=VALIDATION_SEED)
    total = batches.per_epoch
    if not total:
        raise no_validation(shards, "")
    if limit is not None:
        tokens = config.data.sequence_length * config.training.batch_size
        total = min(total, math.ceil(limit / tokens))

    def batch(number: int) -> Any:
        progress(number + 1, total)
        return batches(number)

    objective = Objective(model, pretraining.loss)
    return evaluate(objective, batch, total, device=device, world=get_world()), config


def no_validation(shards: Artefact, otherwise: str) -> InputError:
    """What to say of shards without validation documents. otherwise: what could be given."""
    return InputError(
        f"shards {shards.manifest.name} have no validation documents; tokenize with a larger "
        f"--validation{otherwise}"
    )


def shards_record(workspace: Workspace, manifest: Manifest) -> InputRecord | None:
    """The shards that a run was trained on, or the run that it was finetuned from."""
    records = [*manifest.inputs, *(record for _, record, _ in workspace.lineage(manifest))]
    return next((record for record in records if record.role == "shards"), None)


def shards_of(workspace: Workspace, manifest: Manifest) -> Artefact:
    """The shards of a run, their validation part checked. Raises InputError if they are gone."""
    record = shards_record(workspace, manifest)
    if record is None:
        raise InputError(
            f"run {manifest.name} names no shards to measure it on; give the text, --data FILE"
        )
    shards = workspace.get("shards", record.name.partition("/")[2])
    if shards.manifest.digest != record.digest:
        raise InputError(
            f"shards {shards.manifest.name} are not those that run {manifest.name} was trained "
            "on; make them again as they were"
        )
    shards.verify("validation")
    return shards
