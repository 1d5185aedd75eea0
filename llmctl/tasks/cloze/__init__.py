"""Classification by a cloze: a masked language model says which label's word fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class ClozeEntry(TaskEntry):
    """Classification by a cloze (pattern-exploiting training, Schick and Schütze 2021)."""

    name, command = "cloze", "finetune"
    purpose = "give texts labels by the word at a template's mask"

    def task(self) -> Any:
        from llmctl.tasks.cloze.task import ClozeTask

        return ClozeTask

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.cloze.evaluate import TrainedClozeEvaluator

        return (TrainedClozeEvaluator,)

    def predictor(self) -> Any:
        from llmctl.tasks.cloze.predict import ClozePredictor

        return ClozePredictor

    def asker(self) -> Any:
        from llmctl.tasks.cloze.asking import ClozeAsker

        return ClozeAsker

    def explainer(self) -> Any:
        from llmctl.tasks.cloze.explain import ClozeExplainer

        return ClozeExplainer
