"""Causal language modelling: the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.tasks.entry import TaskEntry


class CausalLMEntry(TaskEntry):
    """Causal language modelling: the next token."""

    name, command = "causal_lm", "pretrain"
    purpose = "go on with texts"

    def task(self) -> Any:
        from llmctl.tasks.causal_lm.task import CausalPretraining

        return CausalPretraining

    def evaluators(self) -> Sequence[Any]:
        from llmctl.tasks.causal_lm.benchmarks import BenchmarkEvaluator
        from llmctl.tasks.causal_lm.evaluate import PerplexityEvaluator
        from llmctl.tasks.causal_lm.prompted import PromptEvaluator
        from llmctl.tasks.dpo.evaluate import PreferenceEvaluator
        from llmctl.tasks.grpo.evaluate import RewardEvaluator

        return (
            PromptEvaluator,
            RewardEvaluator,
            PreferenceEvaluator,
            BenchmarkEvaluator,
            PerplexityEvaluator,
        )

    def generator(self) -> Any:
        from llmctl.tasks.causal_lm.generate import Continuation

        return Continuation

    def asker(self) -> Any:
        from llmctl.tasks.causal_lm.scoring import CausalAsker

        return CausalAsker

    def explainer(self) -> Any:
        from llmctl.tasks.causal_lm.explain import NextWordExplainer

        return NextWordExplainer
