"""Masked and causal language modelling mixed in one network."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.causal_lm import CausalLMEntry


class GptBertEntry(CausalLMEntry):
    """Masked and causal language modelling mixed in one network, which goes on with texts as every
    language model does."""

    name, command = "gpt_bert", "pretrain"
    purpose = "go on with texts, fill masks and read whole texts"

    def task(self) -> Any:
        from llmctl.tasks.gpt_bert.task import GptBertPretraining

        return GptBertPretraining

    def predictor(self) -> Any:
        from llmctl.tasks.gpt_bert.predict import NextMaskPredictor

        return NextMaskPredictor

    def asker(self) -> Any:
        from llmctl.tasks.causal_lm.scoring import CausalAsker

        return CausalAsker
