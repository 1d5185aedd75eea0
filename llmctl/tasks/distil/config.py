"""What decides a distillation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from llmctl.config import Config
from llmctl.models.heads.embed import Pooling
from llmctl.tasks.examples import ExamplesData
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.training.config import TrainingConfig

DEFAULT_PRESET = "mini"
LANGUAGE_LENGTH = 128
"""Tokens of a row of text where none are given, if the models take as many."""

Divergence = Literal["forward", "reverse", "jsd"]
Relation = Literal["qk", "qq", "kk", "vv"]
EnsembleMean = Literal["probabilities", "scores"]


def _parts(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _numbers(value: object) -> object:
    if isinstance(value, int | float):
        return (value,)
    return _parts(value) if isinstance(value, str) and "," in value else value


LARGEST_WEIGHT = 1e9
"""Sums of a few are finite."""


class DistilObjective(Config):
    """What the student is to have in common with its teacher."""

    temperature: float = Field(2.0, gt=0)
    """What the logits of both are divided by, T (Hinton et al. 2015): above 1 what is unlikely
    counts more. The loss is multiplied with T², so that its gradient stays as large."""
    divergence: Divergence = "forward"
    """How the two distributions are compared. forward: the student covers all that the teacher
    finds likely, KL(teacher‖student); reverse: it keeps to what the teacher finds likely,
    KL(student‖teacher); jsd: between the two, by jsd_weight (Agarwal et al. 2023, eq. 1)."""
    jsd_weight: float = Field(0.5, gt=0, lt=1)
    """With the divergence jsd: the teacher's share in the mixture that both are compared with, β;
    near 0 it is like forward, near 1 like reverse."""
    labels: float = Field(0.5, ge=0, le=1)
    """Share of the cross-entropy with what is true, where that is known: the labels of classified
    texts, the tokens of the text."""
    hidden: float = Field(0.0, ge=0)
    """Weight of the hidden states: those of each layer of the student are to be in the direction of
    those of the teacher's layer as far up, through a learned projection where it is narrower
    (DistilBERT, Sanh et al. 2019; FitNets, Romero et al. 2015)."""
    attention: float = Field(0.0, ge=0)
    """Weight of the last layer's relations between tokens (MiniLMv2, Wang et al. 2021)."""
    relations: Annotated[tuple[Relation, ...], BeforeValidator(_parts)] = ("qq", "kk", "vv")
    """With attention: between which of queries, keys and values. qq, kk and vv are MiniLMv2's; qk
    is the attention itself, before a rotation by positions, and with vv MiniLM's."""
    relation_heads: int = Field(0, ge=0)
    """With attention: into how many heads they are divided, of both models alike. 0: as many as the
    teacher has of attention, or the most that divide both."""
    relation_layer: int = Field(0, ge=0)
    """With attention: the teacher's layer that is taken, from 1. 0: its last."""
    on_policy: float = Field(0.0, ge=0, le=1)
    """Share of the batches in which the student goes on with the beginnings of texts itself, and is
    told by the teacher what would have been likely there (GKD, Agarwal et al. 2023)."""
    prompt_tokens: int = Field(16, ge=1)
    """With on_policy: tokens of such a beginning."""
    max_new_tokens: int = Field(48, ge=1)
    """With on_policy: tokens that the student writes."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """With a masked language model: the share of tokens that are to be told."""
    vectors: Literal["auto", "cosine", "similarities"] = "auto"
    """What is asked of an embedder's vectors. cosine: each text's is to be its teacher's;
    similarities: the cosines between the texts of a batch are to be (Tung and Mori 2019), which a
    narrower student can do. auto: cosine where both are as wide."""

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        kinds = type(self).model_fields
        owners = {
            "jsd_weight": self.divergence == "jsd",
            "relations": self.attention > 0,
            "relation_heads": self.attention > 0,
            "relation_layer": self.attention > 0,
            "prompt_tokens": self.on_policy > 0,
            "max_new_tokens": self.on_policy > 0,
        }
        needed = {"jsd_weight": "divergence jsd", "prompt_tokens": "on_policy",
                  "max_new_tokens": "on_policy"}  # fmt: skip
        for name, used in owners.items():
            if not used and getattr(self, name) != kinds[name].default:
                raise ValueError(f"{name} goes with {needed.get(name, 'attention')}; leave it out")
        if not self.relations:
            raise ValueError("relations names none; leave attention out instead")
        return self


class DistilData(ExamplesData):
    """Which columns hold what, and what is held out."""

    unlabelled: str | None = None
    """A file of further texts without labels, for a classifier's student: plain text, or a table
    whose text columns are called the same."""


def _one_or_more(value: object) -> object:
    """One teacher is its name, as it is where no others are thought of."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


class EnsembleConfig(Config):
    """How several teachers answer together."""

    weights: Annotated[
        Literal["even", "accuracy"] | tuple[Annotated[float, Field(ge=0, le=LARGEST_WEIGHT)], ...],
        BeforeValidator(_numbers),
    ] = "even"
    """How the teachers weigh: even, all alike; accuracy, each template by the share of the labelled
    texts to train on that it got right before it was trained (Schick and Schütze 2021); or numbers,
    one for each, 0.6,0.4."""
    mean: EnsembleMean = "probabilities"
    """What the mean is of: the teachers' probabilities, or their scores, as in the paper, by which
    one teacher can rule a label out."""


class DistilConfig(FinetuneConfig):
    """Everything that decides a distillation."""

    task: Literal["distil"] = "distil"
    """What is learned."""
    teacher: Annotated[str | tuple[str, ...] | None, BeforeValidator(_one_or_more)] = None
    """The model to learn from, a run or a folder; of models that give labels several, which answer
    together."""
    ensemble: EnsembleConfig = EnsembleConfig()
    layers: int | None = Field(None, ge=1)
    """The student is the teacher with so many of its layers, evenly chosen from the first to the
    last."""
    arch: str | None = None
    """The student is a network of this architecture with random weights, and the teacher's
    tokenizer."""
    preset: str | None = None
    """With arch: which of its sizes. Unset: mini."""
    pooling: Pooling | Literal["auto"] = "auto"
    """With an embedder: what a text's vector is. auto: as the model has it, else as the teacher."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the student's body, where the architecture has any."""
    objective: DistilObjective = DistilObjective()
    data: DistilData = DistilData()
    training: TrainingConfig = TrainingConfig(
        epochs=5, batch_size=32, warmup=0.1, schedule="linear"
    )

    @model_validator(mode="after")
    def _check_student(self) -> Self:
        if self.layers is not None and self.arch is not None:
            raise ValueError(
                f"--layers {self.layers} takes the student from its teacher and --arch {self.arch} "
                "builds another; give one of them"
            )
        if self.preset is not None and self.arch is None:
            raise ValueError(f"--preset {self.preset} goes with --arch; give it, or leave it out")
        if self.arch is not None and self.method != "full":
            raise ValueError(
                f"--method {self.method} keeps most weights as they are, and those of --arch "
                f"{self.arch} are random; leave --method out"
            )
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        names, weights = self.teachers, self.ensemble.weights
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"--teacher {twice} is given twice; name each once")
        if len(names) < 2 and self.ensemble != EnsembleConfig():
            raise ValueError("ensemble.* says how several teachers answer; give --teacher again")
        if isinstance(weights, tuple) and (len(weights) != len(names) or not sum(weights)):
            raise ValueError(
                f"ensemble.weights has {len(weights)} numbers for {len(names)} teachers; give one "
                "for each, not all of them 0"
            )
        if len(names) > 1 and self.layers is not None:
            raise ValueError(
                f"--layers {self.layers} takes the student from its teacher, and there are "
                f"{len(names)}; give it with --from, or --arch and --preset"
            )
        if len(names) > 1 and self.looks_inside:
            raise ValueError(
                "objective.hidden and attention compare a student with one teacher, and there are "
                f"{len(names)}; leave them out"
            )
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of the models to learn from."""
        if self.teacher is None:
            return ()
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher

    @property
    def looks_inside(self) -> bool:
        """Whether the student is compared with its teacher inside, and not by answers alone."""
        return self.objective.hidden > 0 or self.objective.attention > 0
