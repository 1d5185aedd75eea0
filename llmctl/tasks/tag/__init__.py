"""Tagging: a tag for each word, by which entities, chunks and parts of speech are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class TagEntry(TaskEntry):
    """Tagging of words."""

    name, command = "tag", "finetune"
    purpose = "find entities, or tag words"

    def task(self) -> Any:
        from llmctl.tasks.tag.task import TagTask

        return TagTask

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.tag.evaluate import TagEvaluator

        return (TagEvaluator,)

    def predictor(self) -> Any:
        from llmctl.tasks.tag.predict import TagPredictor

        return TagPredictor

    def explainer(self) -> Any:
        from llmctl.tasks.tag.explain import TagExplainer

        return TagExplainer
