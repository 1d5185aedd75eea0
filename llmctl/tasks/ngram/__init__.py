"""Counting n-grams: the baseline of language models."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.causal_lm import CausalLMEntry


class NgramEntry(CausalLMEntry):
    """Counting n-grams: measured as networks are that predict the next token."""

    name = "ngram"
    purpose = "be a baseline"
    has_network = False

    def task(self) -> Any:
        from llmctl.tasks.ngram.task import NgramTask

        return NgramTask

    def generator(self) -> Any:
        from llmctl.tasks.ngram.generate import NgramContinuation

        return NgramContinuation

    def asker(self) -> Any:
        from llmctl.tasks.causal_lm.scoring import CausalAsker

        return CausalAsker
