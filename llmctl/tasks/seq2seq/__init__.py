"""Texts that are written from sources: translations, summaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class Seq2SeqEntry(TaskEntry):
    """Texts that are written from sources: translations, summaries."""

    name, command = "seq2seq", "finetune"
    purpose = "translate or summarise"

    def task(self) -> Any:
        from llmctl.tasks.seq2seq.task import Seq2SeqTask

        return Seq2SeqTask

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.denoise.evaluate import DenoisingEvaluator
        from llmctl.tasks.seq2seq.evaluate import Seq2SeqEvaluator

        return (DenoisingEvaluator, Seq2SeqEvaluator)

    def predictor(self) -> Any:
        from llmctl.tasks.denoise.predict import SpanPredictor

        return SpanPredictor

    def generator(self) -> Any:
        from llmctl.tasks.seq2seq.generate import FromSources

        return FromSources

    def explainer(self) -> Any:
        from llmctl.tasks.seq2seq.explain import TargetExplainer

        return TargetExplainer
