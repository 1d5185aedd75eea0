"""Several teachers that answer together, as pattern-exploiting training ends (Schick and Schütze
2021, §3.3): a cloze for each template, and one classifier that learns from all of them.

    probabilities   q(l) = Σ w_t p_t(l) / Σ w_t
    scores          q = softmax(Σ w_t s_t / Σ w_t)

The paper takes the scores s; those of a teacher may be the logarithms of its probabilities, as what
both differ by is the same for all labels. Weights are even, given, or how many of the labelled
texts a template got right before it was trained on them.

N texts, E teachers, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError, UsageError
from llmctl.inference.templates import TEXT, TEXT_PAIR, PromptRow, PromptTemplate
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.classify.labels import gives_several, is_ordinal, thresholds_of
from llmctl.tasks.cloze.predict import ClozePredictor
from llmctl.tasks.cloze.template import kept_template
from llmctl.tasks.distil.config import DistilConfig, EnsembleMean
from llmctl.tasks.opened import OpenedModel
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.manifests import InputRecord

LEAST_PROBABILITY = 1e-12
"""Probabilities are taken for at least that: their logarithms are finite."""


@dataclass(frozen=True)
class Teachers:
    """The models that a student learns from."""

    models: tuple[OpenedModel, ...]
    """At least one."""
    untrained: tuple[OpenedModel, ...] = ()
    """What each was trained from, where that decides how they are weighed."""

    @classmethod
    def open(cls, workspace: Workspace, config: DistilConfig) -> Self:
        """Those that a configuration names. Raises UsageError where it names none, or one twice,
        InputError for one that isn't there or has no network."""
        if not config.teachers:
            raise UsageError(
                "--teacher is missing: name the model to learn from, a run or a model folder"
            )
        models = tuple(OpenedModel.open(workspace, name) for name in config.teachers)
        places: dict[Path, str] = {}
        for model in models:
            place = model.folder.path.resolve()
            if place in places:
                raise UsageError(
                    f"--teacher {model.name} and {places[place]} are one model; name each once"
                )
            places[place] = model.name
            if model.folder.architecture is None:
                raise InputError(
                    f"--teacher {model.name} is {model.described}, which has no network; give one"
                )
        untrained: tuple[OpenedModel, ...] = ()
        if config.ensemble.weights == "accuracy":
            untrained = tuple(_untrained(workspace, model) for model in models)
        return cls(models, untrained)

    @property
    def records(self) -> list[InputRecord]:
        """Them as inputs of what is learned."""
        roles = {"teacher": self.models, "untrained": self.untrained}
        return [
            model.record.model_copy(update={"role": role})
            for role, models in roles.items()
            for model in models
        ]


def _untrained(workspace: Workspace, model: OpenedModel) -> OpenedModel:
    """What a cloze was trained from. Raises InputError where that isn't known, or isn't there as it
    was."""
    inputs = model.run.manifest.inputs if model.run is not None and model.kind == "cloze" else []
    record = next((record for record in inputs if record.role == "model"), None)
    if record is None:
        raise InputError(
            f"ensemble.weights accuracy: what --teacher {model.name} got right before it was "
            "trained isn't known, as it is no run of --task cloze; weigh by numbers, or even"
        )
    found = OpenedModel.open(workspace, record.artefact[1] if record.artefact else record.name)
    if found.record.digest != record.digest:
        raise InputError(
            f"ensemble.weights accuracy: {found.name}, which --teacher {model.name} was trained "
            "from, is another by now; train the teacher anew, or weigh by numbers, or even"
        )
    return found


class LabelTeacher:
    """A model that answers texts with probabilities of labels."""

    def __init__(self, model: OpenedModel, labels: Sequence[str] | None = None) -> None:
        """labels: in which order they are wanted. Raises InputError for ordered classes, and for
        other labels than those."""
        if is_ordinal(model.folder):
            raise InputError(
                f"--teacher {model.name} is a classifier of ordered classes, which no "
                "student learns yet; finetune a small model on the labels, with --ordinal"
            )
        self.model, self.several = model, gives_several(model.folder)
        answering = TASKS[model.kind].predictor()
        assert answering is not None
        predictor: Any = answering.for_model(model)
        self._predictor = predictor(model, "cpu")
        self._own = list(model.folder.labels or self._predictor.labels)
        self.labels = self._own if labels is None else list(labels)
        if {*self.labels} != {*self._own}:
            raise InputError(
                f"--teacher {model.name} answers with {_shown(self._own)}, and the first with "
                f"{_shown(self.labels)}: teachers of one student have the same labels"
            )

    @property
    def thresholds(self) -> list[float]:
        """From which probability on each of several labels is given."""
        own = dict(zip(self._own, thresholds_of(self.model.folder).tolist(), strict=True))
        return [own[label] for label in self.labels]

    def probabilities(self, examples: Sequence[Example], reporter: Reporter) -> Tensor:
        """Probabilities of the labels of each text (N, C), in fp64."""
        rows = []
        for prediction in self._predictor.answers(self._asked(examples), reporter=reporter):
            rows.append([prediction.probabilities[label] for label in self.labels])
            if len(rows) % 64 == 0:
                reporter.progress(f"texts answered by {self.model.name}", len(rows), len(examples))
        return torch.tensor(rows, dtype=torch.float64)

    def _asked(self, examples: Sequence[Example]) -> Iterable[Any]:
        """The texts as the model takes them."""
        if self.model.kind != "cloze":
            return examples
        if fields := self._predictor.template.fields - {TEXT, TEXT_PAIR}:
            raise InputError(
                f"--teacher {self.model.name} asks by a template with {', '.join(sorted(fields))}; "
                "a student reads a text, or two"
            )
        return map(_row, examples)

    def right_before(self, untrained: OpenedModel, examples: Sequence[Example]) -> float:
        """The share of some labelled texts that a cloze's template gets right with the model that
        it was trained from."""
        before = _Before(untrained, kept_template(self.model.folder))
        rows: Iterable[Any] = map(_row, examples)
        found = before.answers(rows)
        right = [
            answer.label == one.label for answer, one in zip(found, examples, strict=True)
        ]  # fmt: skip
        return float(np.mean(right))


class _Before(ClozePredictor):
    """A masked language model that is asked by another's template."""

    def __init__(self, model: OpenedModel, template: PromptTemplate) -> None:
        self._template = template
        super().__init__(model, "cpu")

    def own_template(self) -> PromptTemplate:
        return self._template


def _row(example: Example) -> PromptRow:
    """A text, or two, for a template."""
    pair = {} if example.text_pair is None else {TEXT_PAIR: example.text_pair}
    return PromptRow({TEXT: example.text, **pair}, None, example.source)


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")


def together(
    share_ENC: Tensor, weight_E: Tensor, mean: EnsembleMean = "probabilities", *, several: bool
) -> Tensor:
    """What teachers say together of each text (N, C), in fp32: logarithms of the probabilities of
    its classes, or where it may have several labels the logit of each.

    share_ENC: probabilities, of each teacher. weight_E: their weights, of which one is above 0.
    """
    weight_E11 = (weight_E / weight_E.sum()).double()[:, None, None]
    most = 1 - LEAST_PROBABILITY if several else 1.0
    share_ENC = share_ENC.double().clamp(LEAST_PROBABILITY, most)
    if mean == "probabilities":
        share_NC = (weight_E11 * share_ENC).sum(0)
        return (torch.logit(share_NC) if several else share_NC.log()).float()
    score_ENC = torch.logit(share_ENC) if several else share_ENC.log()
    score_NC = (weight_E11 * score_ENC).sum(0)
    return (score_NC if several else score_NC.log_softmax(-1)).float()
