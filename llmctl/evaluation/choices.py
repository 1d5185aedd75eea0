"""Choosing among continuations by their likelihood, in the four ways that are in use.

plain    log P(choice | context)
tokens   the same for each token of the choice, so that long choices aren't at a disadvantage
bytes    the same for each byte, which doesn't depend on the tokenizer
pmi      log P(choice | context) − log P(choice | prior context): how much the context makes
         it likelier (Holtzman et al. 2021, "Surface Form Competition")
"""

# C choices

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """A context and its possible continuations."""

    context: str
    """Empty: the choices are whole texts."""
    choices: tuple[str, ...]
    """The choices as they follow the context, with the space before them where there is one."""
    gold: int
    """Which is right."""
    prior: str | None
    """What stands before a choice where the question doesn't; None: there is no such thing."""
    source: str
    """Its file and line."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each choice, the space before it left out: (C,)."""
        return np.array([len(choice.strip().encode()) for choice in self.choices])


@dataclass(frozen=True)
class ChoiceScores:
    """What a model made of a question's choices."""

    log_probs_C: Floats
    """The log-probability of each choice behind the context, in nats."""
    tokens_C: NDArray[np.int64]
    sizes_C: NDArray[np.int64]
    """Bytes."""
    prior_C: Floats | None = None
    """Log-probabilities behind the prior context."""
    greedy: bool | None = None
    """Whether greedy decoding would write the first choice."""


SCORES: dict[str, Callable[[ChoiceScores], Floats | None]] = {
    "plain": lambda outcome: outcome.log_probs_C,
    "tokens": lambda outcome: outcome.log_probs_C / outcome.tokens_C,
    "bytes": lambda outcome: outcome.log_probs_C / outcome.sizes_C,
    "pmi": lambda outcome: (
        None if outcome.prior_C is None else outcome.log_probs_C - outcome.prior_C
    ),
}
"""Scores of the choices, (C,); None where there is no prior."""


def is_right(scores_C: Floats, gold: int) -> bool:
    """Whether the right choice scores above every other: what ties knows no answer."""
    return bool(scores_C[gold] > np.delete(scores_C, gold).max())
