"""Classification from a few labels: vectors that tell the classes, and a regression on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class SetfitEntry(TaskEntry):
    """Classification from a few labels (SetFit, Tunstall et al. 2022)."""

    name, command = "setfit", "finetune"
    purpose = "give texts labels, of which a few examples are known"

    def task(self) -> Any:
        from llmctl.tasks.setfit.task import SetfitTask

        return SetfitTask

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.classify.evaluate import ClassifierEvaluator

        return (ClassifierEvaluator,)

    def predictor(self) -> Any:
        from llmctl.tasks.classify.predict import ClassPredictor

        return ClassPredictor

    def explainer(self) -> Any:
        from llmctl.tasks.classify.explain import ClassExplainer

        return ClassExplainer
