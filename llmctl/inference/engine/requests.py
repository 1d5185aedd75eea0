"""What is asked of an engine, and what it answers, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llmctl.errors import LlmctlError
from llmctl.inference.decoding.rows import CompiledSamplingParams, Finish


class Constraint(Protocol):
    """What a text may be like, as far as it can be told token by token."""

    def barred(self) -> Tensor | None:
        """Which tokens may not come next, (V,), True there; None: any may."""
        ...

    def accept(self, token: int) -> bool:
        """Take a token into account; returns whether the text is complete with it."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """A prompt and how it is continued."""

    prompt: Sequence[int]
    rules: CompiledSamplingParams
    number: int = 0
    """The prompt's number, by which samples are drawn."""
    top: int = 0
    """The likeliest tokens that are told with each, by the model's own log-probabilities."""
    prompt_top: int | None = None
    """The likeliest tokens that are told with each of the prompt's own; None: neither these nor
    their log-probabilities."""
    constraint: Callable[[], Constraint] | None = None
    """Makes the constraint of each sample."""
    client: str = ""
    """Who asks: clients take turns."""
    salt: str = ""
    """Prompts share what is read of them with those of the same salt alone."""


Ranked = tuple[tuple[int, float], ...]
"""Tokens and their log-probabilities, the likeliest first."""


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability, and those of the likeliest in its place."""

    token: int
    log_prob: float | None
    """None: nothing stands before it."""
    ranked: Ranked = ()


@dataclass(frozen=True)
class Token:
    """What has become of a sample with one more token, or with the end of its request."""

    request: int
    sample: int
    scored: Scored | None = None
    text: str = ""
    """What has become certain with it."""
    finish: Finish | None = None
    prompt: tuple[Scored, ...] = ()
    """The prompt's tokens, with a sample's first, where they were asked for."""
    cached_tokens: int = 0
    """Tokens of the prompt that were not read anew; with a sample's first."""
    error: LlmctlError | None = None
    """Why the request ended without being finished."""
