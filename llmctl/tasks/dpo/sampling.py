"""Answers of a model that is trained or measured: tries in training by the batch, whose rows begin
and end about together, which for a small network is up to 1.4 times as fast; those of a measurement
by the engine, which takes the next prompt where one has its answer.

A token is drawn by the seed, the step, the prompt's place in the batch, the answer's number and the
place in the text: however the batch is divided among processes and parts, the same is drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch

from llmctl.data.random import key_of
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import CompiledSamplingParams, Completion, GenerationConfig, generate
from llmctl.inference.engine import Engine, EngineConfig
from llmctl.inference.weights import WeightType, prepare
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.chat_template import ChatTemplate
from llmctl.training.adapters.base import merge


class AnswerSampler:
    """Writes answers with a model as it is now."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        longest: int,
        max_new_tokens: int,
        at_once: int,
        seed: int,
    ) -> None:
        """template: which says what ends an answer; None: what ends a text. longest: tokens of a
        prompt with its answer. at_once: answers that are written together. Raises InputError if the
        template gives an answer no end."""
        self._tokenizer = copy.copy(tokenizer)
        if template is not None:
            self._tokenizer.special = {**tokenizer.special, "turn_end": template.answer_end}
        self._longest, self._max_new_tokens = longest, max_new_tokens
        self._at_once, self._seed = at_once, seed

    def __call__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        *,
        first: int = 0,
        rollout: int = 0,
        count: int = 1,
        temperature: float = 0.0,
    ) -> list[list[Completion]]:
        """So many answers to each prompt. first: the place of the first in its batch. rollout: the
        batch's number. temperature: 0 is the likeliest token always."""
        rules = self._rules(temperature, rollout, count)
        device = model.output_weight.device
        low = torch.is_autocast_enabled(device.type)
        rows = min(self._at_once, len(prompts) * count)
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            decoder = self._decoder(model, "bf16" if low else "fp32", rows)
            return list(generate(decoder, prompts, rules, batch_size=self._at_once, first=first))

    def each(
        self, model: CausalLM, prompts: Sequence[Sequence[int]], *, temperature: float = 0.0
    ) -> Iterator[Completion]:
        """An answer to each prompt, one after another."""
        rows = min(self._at_once, len(prompts))
        engine = Engine(self._decoder(model, "fp32", rows), EngineConfig(max_sequences=rows))
        for (completion,) in engine.run(prompts, self._rules(temperature)):
            yield completion

    def _rules(
        self, temperature: float, rollout: int = 0, count: int = 1
    ) -> CompiledSamplingParams:
        config = GenerationConfig(
            max_new_tokens=self._max_new_tokens,
            temperature=temperature,
            num_samples=count,
            seed=key_of(self._seed, "rollout", rollout) >> 1,  # a seed has 63 bits
        )
        return CompiledSamplingParams(config, self._tokenizer)

    def _decoder(self, model: CausalLM, dtype: WeightType, rows: int) -> CausalDecoder:
        # The form in which weights are read fastest is not that of training.
        writer = copy.deepcopy(model).requires_grad_(False).eval()
        merge(writer)
        head = prepare(writer, dtype, rows=rows)
        return CausalDecoder(writer, longest=self._longest, head=head, tokenizer=self._tokenizer)
