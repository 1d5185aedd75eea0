"""What every kind of evaluation is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from llmctl.config import ColumnName, Config
from llmctl.data.text.decoding import Encoding, Header, ReadConfig
from llmctl.formats.columns import Finetuned
from llmctl.formats.huggingface.model_folder import ModelFolder
from llmctl.formats.ngram.ngram_folder import NgramFolder
from llmctl.formats.open import open_any_model
from llmctl.inference.decoding.config import LARGEST_POWER, MOST_AT_ONCE
from llmctl.inference.ngram_decoder import NgramScorer
from llmctl.inference.scoring import READ_AHEAD, Answer, CausalScorer, Query, Scorer
from llmctl.inference.weights import WeightType, prepare
from llmctl.tasks.pretraining import PretrainConfig, config_for
from llmctl.tokenizers import Tokenizer
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.manifests import InputRecord, Manifest


def _counts(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


Counts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_counts)]
"""Whole numbers: ``0,1,4``, or a list of them in a recipe."""


class EvaluateConfig(Config):
    """What is measured, and how much of it."""

    task: Literal["perplexity", "lambada", "multiple-choice", "blimp"] | None = None
    """What a language model is measured on. Unset: what the data's columns tell; perplexity where
    they tell nothing."""
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
    shots: Counts = Field((0,), min_length=1)
    """Solved examples in a prompt; several numbers give a row each."""
    score: Literal["plain", "tokens", "bytes", "pmi"] = "plain"
    """What chooses an answer: its log-probability, that for each token or byte, or how much the
    question raises it."""
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
    """Number format of a language model's weights; with bf16 or int8 a perplexity stands beside
    that of fp32."""
    device: str = "auto"
    """Device that computes; auto: the accelerator if there is one."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap, of the baselines, and of the examples in prompts."""

    def read_config(self, trained: Mapping[str, Any] | None = None) -> ReadConfig:
        """How data is read: as given, else as in a training whose ``data`` options are given."""
        values = {name: getattr(self, name) for name in ReadConfig.model_fields}
        return ReadConfig(
            **{
                name: (trained or {}).get(name, field.default)
                if values[name] is None
                else values[name]
                for name, field in ReadConfig.model_fields.items()
            }
        )

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise ValueError("length_penalty is for num_beams 2 or more; leave one of them out")
        return self


MANY = 256
"""Rows of a product when texts are scored, about: more than when they are written."""


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    name: str
    """As it was given."""
    folder: ModelFolder | NgramFolder
    run: Artefact | None
    """The run that it is of, if it isn't a mere folder."""
    record: InputRecord

    @property
    def kind(self) -> str:
        """``classify``, ``masked_lm``, ``causal_lm``, ``ngram``, or ``seq2seq``, whichever way it
        writes from sources."""
        if isinstance(self.folder, ModelFolder) and self.folder.writes_from_source:
            return "seq2seq"
        return "ngram" if isinstance(self.folder, NgramFolder) else self.folder.kind

    @property
    def finetuned(self) -> Finetuned:
        """The model, as far as the columns of its training matter."""
        return Finetuned(self.name, self.folder, self.run)

    @property
    def is_language_model(self) -> bool:
        """Whether it predicts next tokens."""
        return self.kind in ("causal_lm", "ngram")

    @property
    def tokenizer(self) -> Tokenizer:
        return self.folder.tokenizer

    @property
    def neural(self) -> ModelFolder:
        """The folder of a neural model."""
        assert isinstance(self.folder, ModelFolder)
        return self.folder

    def scorer(self, device: str, dtype: WeightType) -> Scorer:
        """A language model, to score texts with. An n-gram model knows no ``dtype``."""
        if isinstance(self.folder, NgramFolder):
            return _DividedScorer(NgramScorer(self.folder.model))
        model = self.folder.causal_lm().to(choose_device(device, "--device"))
        # As trained, fp32 needs no other form: that of writing is for few rows at once.
        head = None if dtype == "fp32" else prepare(model, dtype, rows=MANY)
        return _DividedScorer(CausalScorer(model, longest=self.folder.max_length, head=head))


class _DividedScorer:
    """A scorer whose queries several processes divide."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.longest = scorer, scorer.longest

    def score(self, queries: Iterable[Query], *, greedy: bool = False) -> Iterator[Answer]:
        world = current()
        yield from world.divided(
            queries,
            lambda part, first: self._scorer.score(part, greedy=greedy),
            block=max(1, READ_AHEAD // world.size),
            kind=Answer,
        )


def open_subject(workspace: Workspace, name: str) -> Subject:
    """The model of a run's name or of a folder. Raises InputError if there is none."""
    return Subject(name, *open_any_model(workspace, name))


def trained_config(manifest: Manifest) -> PretrainConfig[Any, Any, Any]:
    """The configuration of a neural model's pretraining."""
    config = manifest.config
    # The vocabulary's size follows from the shards.
    model = {**config["model"], "vocab_size": 0}
    return config_for(config["arch"]).model_validate({**config, "model": model})


@dataclass(frozen=True)
class Given:
    """What is measured on what."""

    subject: Subject
    others: Mapping[str, Subject]
    data: Path | None
    target: Path | None = None
    """The references of sources in plain text."""
    template: Path | None = None
    examples: Path | None = None
    shards: Artefact | None = None
    """Of the subject's run, where their validation part is measured on."""
    notes: list[str] = field(default_factory=list)
    """What was noticed while the inputs were chosen."""

    @property
    def subjects(self) -> dict[str, Subject]:
        """The model as ``model``, as reports have it, and what it is compared with."""
        return {"model": self.subject, **self.others}


Report = dict[str, Any]
"""JSON values: ``task``, ``results``, ``notes``, and ``summary`` for the manifest."""
