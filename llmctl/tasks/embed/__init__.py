"""Texts as vectors: those that belong together near each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class EmbedEntry(TaskEntry):
    """Texts as vectors: those that belong together near each other."""

    name, command = "embed", "finetune"
    purpose = "make vectors of texts, near where texts are alike"

    def task(self) -> Any:
        from llmctl.tasks.embed.task import EmbedTask

        return EmbedTask

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.embed.evaluate import SimilarityEvaluator

        return (SimilarityEvaluator,)

    def explainer(self) -> Any:
        from llmctl.tasks.embed.explain import SimilarityExplainer

        return SimilarityExplainer
