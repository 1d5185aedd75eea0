"""Replaced-token detection: which tokens of a text a small generator put there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class ElectraEntry(TaskEntry):
    """Replaced-token detection: which tokens of a text a small generator put there."""

    name, command = "electra", "pretrain"
    purpose = "tell which tokens of a text were replaced"

    def task(self) -> Any:
        from llmctl.tasks.electra.task import ElectraPretraining

        return ElectraPretraining

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.electra.evaluate import DetectionEvaluator

        return (DetectionEvaluator,)

    def predictor(self) -> Any:
        from llmctl.tasks.electra.predict import ReplacementPredictor

        return ReplacementPredictor

    def explainer(self) -> Any:
        from llmctl.tasks.electra.explain import DetectionExplainer

        return DetectionExplainer
