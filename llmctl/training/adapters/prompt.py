"""Soft prompts: learn the embeddings of a few tokens before each text (Lester et al. 2021,
arXiv:2104.08691). The network stays as it is.

They start as those of some words, or of tokens of the vocabulary; the paper found either better
than random numbers.

P virtual tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.config import Config
from llmctl.data.random import key_of, permute
from llmctl.data.tables.encoded import SHORTEST_TEXT
from llmctl.errors import ConfigError
from llmctl.formats.base import Pretrained
from llmctl.formats.peft.virtual import PROMPT_EMBEDDINGS
from llmctl.formats.peft.writing import Learned
from llmctl.models.layers.virtual_tokens import VirtualShape, VirtualTokens
from llmctl.tokenizers import Tokenizer
from llmctl.training.adapters.base import Method, freeze_all_but


class PromptConfig(Config):
    """The soft prompt."""

    tokens: int = Field(20, ge=1)
    """Virtual tokens before each text."""
    words: str = ""
    """Words as whose embeddings they start, over and over or cut to as many tokens. Empty: as those
    of tokens of the vocabulary, drawn by the seed."""


class VirtualTokensMethod(Method):
    """Something of virtual tokens before each text trains."""

    table: ClassVar[str]
    merges = False

    def check(self, config: Any, base: Pretrained) -> None:
        super().check(config, base)
        options = getattr(config, self.table)
        check_fit(f"{self.table}.tokens {options.tokens}", options.tokens, base)
        check_alone(self.name, config, base)
        start_ids(f"{self.table}.words", options.words, options.tokens, base.tokenizer, 0)

    def virtual_tokens(self, config: Any) -> int:
        return int(getattr(config, self.table).tokens)


class SoftPrompt(VirtualTokensMethod):
    """Embeddings of virtual tokens before each text train."""

    name, table, rate = "prompt", "prompt", 100.0
    new_rate = 0.03

    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        freeze_all_but(model, new)
        body: Any = model.body
        table_VD: Tensor = body.embedding().weight
        options = config.prompt
        ids_P = start_ids("", options.words, options.tokens, base.tokenizer, config.seed)
        virtual = VirtualTokens(VirtualShape(options.tokens, table_VD.shape[1])).to(table_VD.device)
        assert virtual.embeddings is not None
        with torch.no_grad():
            virtual.embeddings.copy_(body.embedding()(torch.tensor(ids_P, device=table_VD.device)))
        body.put_before_texts(virtual)

    def learned(self, model: nn.Module, config: Any, base: Pretrained) -> Learned:
        virtual = virtual_of(model)
        return Learned(
            {
                "peft_type": "PROMPT_TUNING",
                "prompt_tuning_init": "RANDOM",
                "num_virtual_tokens": virtual.count,
                "token_dim": virtual.shape.embedding_width,
                "num_transformer_submodules": 1,
                "num_attention_heads": base.config.num_heads,
                "num_layers": base.config.num_layers,
            },
            {PROMPT_EMBEDDINGS: virtual.learned().detach()},
            is_prompt=True,
        )


def virtual_of(model: nn.Module) -> VirtualTokens:
    """The virtual tokens of a model that has some."""
    body: Any = model.body
    virtual: VirtualTokens = body.virtual_tokens
    return virtual


def start_ids(field: str, words: str, count: int, tokenizer: Tokenizer, seed: int) -> list[int]:
    """The tokens that so many virtual ones start as. Raises ConfigError, naming the field, for
    words that the tokenizer has no piece for."""
    if words:
        ids = [int(number) for number in tokenizer.encode(words)]
        if not ids:
            raise ConfigError(f"{field} {words!r} has no token; give some words")
        if tokenizer.special.get("unk") in ids:
            raise ConfigError(
                f"{field} {words!r}: the tokenizer has no piece for some of it; give other words"
            )
        return (ids * -(-count // len(ids)))[:count]
    plain = np.setdiff1d(
        np.arange(tokenizer.vocab_size), [*tokenizer.special.values(), *tokenizer.holes]
    )
    order = permute(key_of(seed, "prompt"), len(plain), np.arange(min(count, len(plain))))
    drawn: list[int] = plain[order].tolist()
    return (drawn * -(-count // len(drawn)))[:count]


def check_fit(what: str, count: int, base: Pretrained) -> None:
    """Raises ConfigError where virtual tokens leave a text no room."""
    most = int(base.config.max_positions)
    if most - count < SHORTEST_TEXT:
        raise ConfigError(
            f"{what}: virtual tokens stand before each text, and the model's context is {most} "
            f"tokens; use at most {most - SHORTEST_TEXT}"
        )


def check_alone(method: str, config: Any, base: Pretrained) -> None:
    """Raises ConfigError or InputError where virtual tokens can't stand before a task's texts."""
    attached = getattr(config, "style", None) == "decoder" and base.spec.kind == "decoder"
    if attached:
        raise ConfigError(
            f"--method {method} with --style decoder: the decoder that is attached starts anew and "
            f"trains whole, so virtual tokens would add little; take --style prefix, or lora"
        )
