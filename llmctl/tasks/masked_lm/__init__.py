"""Masked language modelling: hidden tokens, and whether B follows A."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class MaskedLMEntry(TaskEntry):
    """Masked language modelling: hidden tokens, and whether B follows A."""

    name, command = "masked_lm", "pretrain"
    purpose = "fill in hidden tokens"

    def task(self) -> Any:
        from llmctl.tasks.masked_lm.task import MaskedPretraining

        return MaskedPretraining

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.cloze.evaluate import ClozeEvaluator
        from llmctl.tasks.masked_lm.evaluate import MaskedEvaluator

        return (ClozeEvaluator, MaskedEvaluator)

    def asker(self) -> Any:
        from llmctl.tasks.cloze.asking import ClozeAsker

        return ClozeAsker

    def predictor(self) -> Any:
        from llmctl.tasks.masked_lm.predict import MaskPredictor

        return MaskPredictor

    def explainer(self) -> Any:
        from llmctl.tasks.masked_lm.explain import MaskExplainer

        return MaskExplainer
