"""Finetuning a model that writes answers in a chat: what instructions, pairs, ratings and rewards
share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from llmctl.formats.base import Pretrained
from llmctl.formats.description import CHAT, MAX_LENGTH, NEXT_TOKEN_KINDS
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.sampling_defaults import add_sampling, sampling_fields
from llmctl.inference.decoding import GenerationConfig
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.finetuning import FinetuningTask
from llmctl.tokenizers.chat_template import ChatTemplate, default_template


class ChatTask(FinetuningTask):
    """Turns of a chat by the model's template, or the default one, and a decoder to train."""

    config: Any
    lacks = "and doesn't write text; give a GPT, a Llama or a nanochat model"
    peft_task: ClassVar[str] = "CAUSAL_LM"

    def __init__(
        self, data: Path, base: Pretrained, config: Any, *, start: str, reporter: Reporter
    ) -> None:
        """Raises ConfigError for a length beyond the model's."""
        super().__init__(data, base, config, start=start)
        self._max_length = self.text_length(config.data.max_length)
        source, note = default_template(base.tokenizer)
        if note is not None:
            reporter.note(note)
        self._tokenizer = copy.copy(base.tokenizer)
        self._tokenizer.chat_template = source
        self._template = ChatTemplate(source, self._tokenizer)
        self._sampling = sampling_fields(base, GenerationConfig)

    @classmethod
    def kinds(cls, config: Any) -> tuple[str, ...]:
        return NEXT_TOKEN_KINDS

    @property
    def facts(self) -> dict[str, Any]:
        return {"max_length": self._max_length}

    @property
    def new_parts(self) -> tuple[str, ...]:
        return ()

    def network(self) -> CausalLM:
        base, dropout = self.base, self.config.dropout
        if self.scratch:
            return CausalLM(base.spec.build(base.config_with(dropout)))
        return base.causal_lm(dropout=dropout)

    def write(self, folder: Path, model: nn.Module) -> None:
        extra = {MAX_LENGTH: max(self._max_length, self.base.max_length), CHAT: True}
        write_model_folder(folder, model, self._tokenizer, extra)
        add_sampling(folder, self._sampling)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return {}
