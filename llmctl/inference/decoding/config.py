"""How a text is continued: one field for each strategy, and what a method of search needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmctl.config import Config

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Fields that ask for sampling when they are set."""

DEFAULT_CANDIDATES = 4
"""Candidates of contrastive search; Su et al. 2022 use 4 to 8 for GPT-2."""

LARGEST_PENALTY = 1e9
"""Times what it is multiplied with, a penalty stays far below the largest number of fp32, 3e38; no
logit comes near it."""
LARGEST_POWER = 40.0
"""A million tokens to this power are within a float's range, and so is one divided by it."""
MOST_AT_ONCE = 4096
"""Texts of a prompt that are written at once: each takes memory, before a word is written."""
MOST_AHEAD = 256
"""Tokens that a draft model writes ahead: of so many next to none is kept."""
MOST_LOOKED_FOR = 64
"""Last tokens of a text that are looked for in it: where so many stand twice, fewer do too."""

RANGES = {
    "temperature": (0.0, math.inf, "0 (always the likeliest token) or more"),
    "top_p": (
        math.ulp(0.0),
        1.0,
        "more than 0 (which leaves no token) and at most 1",
    ),
    "min_p": (0.0, 1.0, "from 0 to 1"),
    "typical_p": (math.ulp(0.0), 1.0, "more than 0 (which leaves no token) and at most 1"),
    "repetition_penalty": (
        1 / LARGEST_PENALTY,
        LARGEST_PENALTY,
        "more than 0, from 1e-9 to 1e9; above 1 it discourages",
    ),
    "frequency_penalty": (
        -LARGEST_PENALTY,
        LARGEST_PENALTY,
        "from -1e9 to 1e9; above 0 it discourages",
    ),
    "presence_penalty": (
        -LARGEST_PENALTY,
        LARGEST_PENALTY,
        "from -1e9 to 1e9; above 0 it discourages",
    ),
    "length_penalty": (
        -LARGEST_POWER,
        LARGEST_POWER,
        "from -40 to 40; above 0 it favours long texts",
    ),
    "penalty_alpha": (0.0, 1.0, "from 0 (the likeliest) to 1 (the least alike)"),
}
"""Smallest and largest value of a field, and both in words."""


class GenerationConfig(Config):
    """How texts are continued.

    Greedy, unless a field that is about sampling is set or several samples are asked for.
    """

    SIZES: ClassVar[tuple[float, float]] = (0.0, math.inf)
    """Each field has a range of its own, and logits are divided so that any number will do."""

    max_new_tokens: int = Field(100, ge=1)
    """Tokens that are added at most."""
    min_new_tokens: int = Field(0, ge=0)
    """Tokens before which a text may not end by itself."""
    temperature: float | None = None
    """Logits are divided by it: above 0 and below 1 sharper, above 1 flatter; 0: the likeliest
    token always. Set, it asks for sampling; unset, it is 1."""
    top_k: int | None = Field(None, ge=1)
    """Sample among so many of the likeliest tokens; the candidates of contrastive search."""
    top_p: float | None = None
    """Sample among the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Sample among tokens at least this share as likely as the likeliest."""
    typical_p: float | None = None
    """Sample among tokens whose surprise is nearest to the expected one, up to this probability."""
    repetition_penalty: float | None = None
    """Logits of tokens that the text has are divided by it, or multiplied where they are
    negative; 1.2 in Keskar et al. 2019."""
    frequency_penalty: float | None = None
    """What is taken from a token's logit for each time that it was written."""
    presence_penalty: float | None = None
    """What is taken from a token's logit if it was written at all."""
    no_repeat_ngram_size: int | None = Field(None, ge=1)
    """No so many tokens in a row come twice, the prompt counted."""
    bad_words: tuple[str, ...] = ()
    """Words that are not written: their tokens, as the tokenizer has them at a text's start and
    behind a space."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens and what is added to the logit of each, as [[token, bias], …]; also a table by
    token."""
    allowed_token_ids: tuple[int, ...] = ()
    """Tokens that alone may come; none given: all."""
    stop: tuple[str, ...] = ()
    """Texts at which writing ends; what is returned ends before them."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens at which writing ends, beside the end of a document and of a turn."""
    ignore_eos: bool = False
    """Go on behind the end of a document or of a turn, until there are enough tokens."""
    num_beams: int = Field(1, ge=1, le=MOST_AT_ONCE)
    """Texts that beam search follows at once; 1: no beam search."""
    length_penalty: float | None = None
    """A finished beam scores its log-probability divided by its length to this power; unset,
    it is 1."""
    early_stopping: bool | Literal["never"] | None = None
    """When beam search ends: true, with enough finished beams; false (the same as unset), when no
    beam seems able to beat them at its length; never, when none can at any length."""
    num_samples: int = Field(1, ge=1, le=MOST_AT_ONCE)
    """Texts for each prompt; of beam search, the best."""
    penalty_alpha: float | None = None
    """Contrastive search: the weight of being unlike what was written, against the probability;
    0.6 in Su et al. 2022."""
    draft_tokens: int = Field(4, ge=1, le=MOST_AHEAD)
    """Tokens that speculative decoding guesses ahead, by a draft model or by prompt lookup."""
    prompt_lookup: int | None = Field(None, ge=1, le=MOST_LOOKED_FOR)
    """Prompt lookup: guess what followed the last place in the text where its last tokens stood, so
    many or fewer; 3 finds most. Unset: don't."""
    seed: int = Field(0, ge=0)
    """Seed of sampling: a sample depends on it, on the prompt's number and on its own."""

    @field_validator(*RANGES)
    @classmethod
    def _in_range(cls, value: float | None, info: Any) -> float | None:
        least, most, words = RANGES[info.field_name]
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            raise ValueError(f"must be {words}")
        return value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _by_token(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if not all(str(token).isascii() and str(token).isdecimal() for token in value):
            raise ValueError("must have the numbers of tokens for keys")
        return tuple((int(token), bias) for token, bias in value.items())

    @field_validator("logit_bias")
    @classmethod
    def _bounded(cls, value: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        if any(abs(bias) > LARGEST_PENALTY for _, bias in value):
            raise ValueError("must have biases from -1e9 to 1e9")
        return value

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _as_word(cls, value: Any) -> Any:
        words = {"true": True, "false": False, "never": "never"}
        if isinstance(value, str) and value.lower() not in words:
            raise ValueError("must be true, false or never")
        return words[value.lower()] if isinstance(value, str) else value

    @field_validator("bad_words", "stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("bad_words", "stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("has an empty text; leave it out")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens "
                f"{self.max_new_tokens}; raise the second or lower the first"
            )
        if self.num_beams > 1:
            self._refuse("beam search does not sample", (*SAMPLING, "penalty_alpha"))
            self._refuse("beam search looks nothing up", ("prompt_lookup",))
            if self.num_samples > self.num_beams:
                raise ValueError(
                    f"num_samples {self.num_samples} is more than num_beams {self.num_beams}; "
                    "beam search returns as many texts as it has beams at most"
                )
        else:
            self._refuse(
                "it is for beam search, with num_beams 2 or more",
                ("length_penalty", "early_stopping"),
            )
        if self.penalty_alpha is not None:
            others = tuple(name for name in SAMPLING if name != "top_k")
            self._refuse("contrastive search does not sample", others)
            self._refuse("contrastive search looks nothing up", ("prompt_lookup",))
        if self.num_samples > 1 and (self.temperature == 0 or self.penalty_alpha is not None):
            raise ValueError(
                f"num_samples {self.num_samples} would all be the same without sampling; leave "
                "it out, or set a temperature above 0"
            )
        return self

    def _refuse(self, reason: str, names: tuple[str, ...]) -> None:
        for name in names:
            value = getattr(self, name)
            # temperature 0 says that nothing is to be sampled.
            if value is not None and (name, value) != ("temperature", 0):
                raise ValueError(f"{name} {value} has no effect: {reason}; leave it out")

    @property
    def rows_each(self) -> int:
        """Rows that a prompt takes while its texts are written."""
        return max(self.num_beams, self.num_samples)

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, and not the likeliest taken."""
        if self.temperature == 0 or self.penalty_alpha is not None:
            return False
        asked = any(getattr(self, name) is not None for name in SAMPLING)
        return asked or (self.num_samples > 1 and self.num_beams == 1)
