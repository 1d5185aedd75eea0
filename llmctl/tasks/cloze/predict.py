"""Predict with a model that was trained by a cloze: labels' words at its template's mask."""

from __future__ import annotations

from llmctl.inference.templates import PromptTemplate
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.cloze.asking import ClozeAsker
from llmctl.tasks.cloze.template import kept_template
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.prompted import Asking, PromptedPredictor


class ClozePredictor(PromptedPredictor):
    """A cloze model that is ready for texts."""

    kinds = ("cloze",)

    def __init__(
        self,
        model: OpenedModel,
        device: str = "auto",
        asking: Asking | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        super().__init__(model, ClozeAsker(model, device), asking or Asking(), reporter)

    def own_template(self) -> PromptTemplate | None:
        return kept_template(self.folder)
