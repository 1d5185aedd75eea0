"""Predict: texts to what a model answers, by what it was trained for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.tasks.classify.predict import ClassPredictor
from llmctl.tasks.masked_lm.predict import MaskPredictor
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prediction import Predictor, TextAnswer
from llmctl.workspace.artefacts import Workspace

PREDICTORS_BY_KIND: Mapping[str, type[Predictor]] = {
    "classify": ClassPredictor,
    "masked_lm": MaskPredictor,
}
"""What answers single texts, by what a model does."""


def open_predictor(workspace: Workspace, start: str, *, device: str = "auto") -> Predictor:
    """A model that is ready to answer. Raises InputError if there is none, or it answers no single
    texts."""
    model = OpenedModel.open(workspace, start)
    if model.kind not in PREDICTORS_BY_KIND:
        raise InputError(f"{start} is {model.described}; give a classifier or a pretrained BERT")
    return PREDICTORS_BY_KIND[model.kind](model, device)


def predict(
    workspace: Workspace,
    start: str,
    examples: Iterable[Example],
    *,
    top: int = 5,
    device: str = "auto",
) -> Iterator[TextAnswer]:
    """What a model answers to some texts, in their order. Raises InputError if it answers none."""
    return open_predictor(workspace, start, device=device).answers(examples, top=top)
