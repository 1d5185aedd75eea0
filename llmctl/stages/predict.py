"""Predict: texts to what a model answers, by what it was trained for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.formats.description import MODEL_KINDS
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.cloze.predict import ClozePredictor
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prediction import Predictor, TextAnswer
from llmctl.tasks.prompted import Asking, open_asked
from llmctl.workspace.artefacts import Workspace


def open_predictor(
    workspace: Workspace,
    start: str,
    *,
    device: str = "auto",
    asking: Asking | None = None,
    reporter: Reporter | None = None,
) -> Predictor:
    """A model that is ready to answer. asking: by a template, which any model is asked by that says
    how likely words are.

    Raises InputError if there is none, or it answers no single texts.
    """
    model = OpenedModel.open(workspace, start)
    if asking is not None and asking.given:
        if model.kind == "cloze":
            return ClozePredictor(model, device, asking, reporter)
        return open_asked(model, asking, device, TASKS[model.kind].asker(), reporter or Reporter())
    predictor = TASKS[model.kind].predictor()
    if predictor is None:
        answering = [MODEL_KINDS[n] for n, t in TASKS.items() if t.predictor() is not None]
        raise InputError(f"{start} is {model.described}; give {' or '.join(answering)}")
    return predictor.for_model(model)(model, device)


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
