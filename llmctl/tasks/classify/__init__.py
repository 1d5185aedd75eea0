"""Classification of texts and of pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class ClassifyEntry(TaskEntry):
    """Classification of texts and of pairs of texts."""

    name, command = "classify", "finetune"
    purpose = "give texts labels"

    def task(self) -> Any:
        from llmctl.tasks.classify.task import ClassifyTask

        return ClassifyTask

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.classify.evaluate import ClassifierEvaluator
        from llmctl.tasks.classify.evaluate_several import MultiLabelEvaluator, OrdinalEvaluator

        return (ClassifierEvaluator, MultiLabelEvaluator, OrdinalEvaluator)

    def predictor(self) -> Any:
        from llmctl.tasks.classify.predict import ClassPredictor

        return ClassPredictor

    def explainer(self) -> Any:
        from llmctl.tasks.classify.explain import ClassExplainer

        return ClassExplainer
