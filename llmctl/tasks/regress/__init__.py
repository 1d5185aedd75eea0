"""Regression: a number for each text, or pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class RegressEntry(TaskEntry):
    """Regression on texts and on pairs of texts."""

    name, command = "regress", "finetune"
    purpose = "give texts numbers"

    def task(self) -> Any:
        from llmctl.tasks.regress.task import RegressTask

        return RegressTask

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.regress.evaluate import RegressEvaluator

        return (RegressEvaluator,)

    def predictor(self) -> Any:
        from llmctl.tasks.regress.predict import NumberPredictor

        return NumberPredictor

    def explainer(self) -> Any:
        from llmctl.tasks.regress.explain import NumberExplainer

        return NumberExplainer
