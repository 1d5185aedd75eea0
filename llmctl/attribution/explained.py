"""A text whose answer is explained: its words, its tokens, and the number that is the answer.

R rows, T tokens, W words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]

TOKENS_AT_ONCE = 1 << 13
"""Tokens that are computed together."""


@dataclass(frozen=True)
class ExplainedText:
    """What a model answered to a text, as a function of the text's tokens."""

    text: str
    words: tuple[tuple[int, int], ...]
    """The places of its words, W of them."""
    answer: str
    """What is explained, in words: ``World rather than Sports``."""
    ids_T: Tensor
    """Its tokens, with the special ones around them."""
    word_T: NDArray[np.int64]
    """The word that each token belongs to; -1: none, and such a token always stays."""
    blank: int
    """The token that stands for a word that is left out."""
    network: nn.Module
    embedding: nn.Module
    """Token ids to vectors; called for the rows first, before whatever else it is called for."""
    score: Callable[[Tensor], Tensor]
    """The answer's number (R,), a logit or a log-probability, of rows of tokens (R, T)."""
    read_at: tuple[int, ...] = (0,)
    """The places of the hidden states that the answer is read from."""
    passes: int = 1
    """How often ``score`` reads the rows."""
    facts: dict[str, object] = field(default_factory=dict)
    """What else was answered, in JSON values."""

    def rows(self, kept_RW: NDArray[np.bool_]) -> Tensor:
        """The text's tokens (R, T), with those words alone."""
        hidden_RT = np.zeros((len(kept_RW), len(self.word_T)), dtype=bool)
        own_T = self.word_T >= 0
        hidden_RT[:, own_T] = ~kept_RW[:, self.word_T[own_T]]
        hidden = torch.from_numpy(hidden_RT).to(self.ids_T.device)
        return self.ids_T.expand(len(kept_RW), -1).masked_fill(hidden, self.blank)

    @torch.no_grad()
    def scores(self, kept_RW: NDArray[np.bool_]) -> Floats:
        """The answer's number (R,) where the other words are left out."""
        each = max(1, TOKENS_AT_ONCE // len(self.ids_T))
        parts = [
            self.score(self.rows(kept_RW[begin : begin + each])).double().cpu()
            for begin in range(0, len(kept_RW), each)
        ]
        found: Floats = torch.cat(parts).numpy()
        return found

    def of_words(self, weights_T: Tensor) -> Floats:
        """The sums (W,) of what the tokens of each word have."""
        own_T = self.word_T >= 0
        values_T = weights_T.detach().double().cpu().numpy()
        return np.bincount(
            self.word_T[own_T], weights=values_T[own_T], minlength=len(self.words)
        ).astype(np.float64)


class AttributionMethod(ABC):
    """A way of giving words weights."""

    name: ClassVar[str]
    described: ClassVar[str]
    """In a few words, with its source."""

    @abstractmethod
    def weights(self, text: ExplainedText) -> Floats:
        """The weight (W,) of each word. Raises InputError where the model can't have them."""

    def facts(self) -> dict[str, float]:
        """What is to be known of the weights that were given last."""
        return {}


def ends_of(begins: Sequence[int], length: int) -> list[int]:
    """Where in a text of some length each token ends, from where each begins."""
    return [*begins[1:], length][: len(begins)]


def words_of_tokens(
    words: Sequence[tuple[int, int]], begins: Sequence[int], ends: Sequence[int]
) -> NDArray[np.int64]:
    """The word (N,) that each token belongs to, -1 where it holds none's characters.

    begins, ends: where in the text each token begins and ends. A token that begins with the space
    before a word is that word's; one that holds parts of several belongs to the last.
    """
    if not words:
        return np.full(len(begins), -1)
    begins_W, ends_W = np.asarray(words, dtype=np.int64).T
    begins_N, ends_N = np.asarray(begins, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    last_N = np.searchsorted(begins_W, np.maximum(ends_N, begins_N + 1), side="left") - 1
    holds_N = (last_N >= 0) & (ends_W[np.maximum(last_N, 0)] > begins_N)
    return np.where(holds_N, last_N, -1)
