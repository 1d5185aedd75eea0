"""An n-gram model as it is asked: a word's probability behind a context, from tables.

Kneser-Ney's and Katz's estimates both take, where an n-gram is not in the table, the one without
its first word, times a weight of the context:

    P(w | h) = probability(h w)                          if h w is in the table
             = backoff(h) · P(w | h without its first)   else; backoff(h) = 1 if h is not there

An estimate that never looks at shorter contexts has 1/V as its second line's P.

A context is known by its *places*: of its last word, its last two words, … in the tables of their
orders. Reading a word makes them places of the new context, one look-up for each.

B rows, T tokens, Q look-ups, V vocabulary, N n-grams of an order, C their contexts, K = order − 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.models.ngram.counts import TokenBlock

UNSEEN, ABSENT = -1, -2
"""Places of a context that no table has, and of one that reaches back over the text's start."""


@dataclass(frozen=True)
class NgramTable:
    """The n-grams of one order from 2 on, sorted by context, then word."""

    first: NDArray[Any]
    """(C + 1,): where the words behind each context begin."""
    backoff: NDArray[Any]
    """(C,) weight of the shorter context; 1 where nothing is behind a context."""
    word: NDArray[Any]
    """(N,)."""
    probability: NDArray[Any]
    """(N,)."""

    def find(self, context_Q: NDArray[np.int64], word_Q: NDArray[Any]) -> NDArray[np.int64]:
        """The place of each word behind its context, (Q,); UNSEEN if it isn't there. A context
        that is UNSEEN or ABSENT stays so."""
        place_Q = np.where(context_Q == ABSENT, ABSENT, UNSEEN)
        known = np.flatnonzero(context_Q >= 0)
        low, size = self._range(context_Q[known])
        some = size > 0
        known, low, size = known[some], low[some], size[some]
        word = word_Q[known]
        searched = np.flatnonzero(size > 1)
        while len(searched):
            # The word, if it is there, stays among the ``size`` entries from ``low`` on.
            half = size[searched] >> 1
            middle = low[searched] + half
            low[searched] = np.where(self.word[middle] <= word[searched], middle, low[searched])
            size[searched] -= half
            searched = searched[size[searched] > 1]
        place_Q[known] = np.where(self.word[low] == word, low, UNSEEN)
        return place_Q

    def behind(self, context_Q: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every n-gram of some contexts: the index in ``context_Q`` and the place of each."""
        low_Q, size_Q = self._range(context_Q)
        index = np.repeat(np.arange(len(context_Q)), size_Q)
        skipped_Q = low_Q - (np.cumsum(size_Q) - size_Q)
        return index, np.arange(len(index)) + skipped_Q[index]

    def _range(self, context_Q: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        low_Q = self.first[context_Q].astype(np.int64)
        return low_Q, self.first[context_Q + 1].astype(np.int64) - low_Q


class NgramModel:
    """A language model of the last ``order`` − 1 tokens."""

    def __init__(
        self, unigram: NDArray[Any], tables: Sequence[NgramTable], *, backs_off: bool
    ) -> None:
        """unigram: (V,) probabilities without a context. tables: of orders 2, 3, …
        backs_off: whether shorter contexts count where a longer one does not have the word."""
        self.unigram, self.tables, self.backs_off = unigram, tables, backs_off
        self.order = len(tables) + 1
        self.vocab_size = len(unigram)

    @property
    def parameters(self) -> int:
        """N-grams that are stored."""
        return self.vocab_size + sum(len(table.word) for table in self.tables)

    def start(self, rows: int) -> NDArray[np.int64]:
        """The places (B, K) of texts of which nothing was read."""
        return np.full((rows, self.order - 1), ABSENT)

    def read(self, places_BK: NDArray[np.int64], word_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places (B, K) after one more token of each text."""
        read_BK = np.empty_like(places_BK)
        if self.order > 1:
            read_BK[:, 0] = word_B
        for number, table in enumerate(self.tables[:-1]):
            read_BK[:, number + 1] = table.find(places_BK[:, number], word_B)
        return read_BK

    def distribution(self, places_BK: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probabilities (B, V) of the next token."""
        result_BV = np.tile(self.unigram.astype(np.float64), (len(places_BK), 1))
        for table, context_B in zip(self.tables, places_BK.T, strict=True):
            if not self.backs_off:
                result_BV[context_B != ABSENT] = 1 / self.vocab_size
            rows = np.flatnonzero(context_B >= 0)
            result_BV[rows] *= table.backoff[context_B[rows], None]
            index, place = table.behind(context_B[rows])
            result_BV[rows[index], table.word[place]] = table.probability[place]
        return result_BV

    def log_probabilities(self, block: TokenBlock) -> NDArray[np.float64]:
        """Log-probability (T,) in nats of each token, behind what its document has before it; 0
        for a document's first, which is given."""
        probability_T = self.unigram[block.tokens].astype(np.float64)
        for table, context_T, place_T in self._walk(block):
            if not self.backs_off:
                probability_T[context_T != ABSENT] = 1 / self.vocab_size
            known, seen = np.flatnonzero(context_T >= 0), np.flatnonzero(place_T >= 0)
            probability_T[known] *= table.backoff[context_T[known]]
            probability_T[seen] = table.probability[place_T[seen]]
        probability_T[block.starts] = 1.0
        return np.log(probability_T)

    def places(self, block: TokenBlock) -> NDArray[np.int64]:
        """The places (T, K) of the context that each token is predicted from."""
        contexts = [context_T for _, context_T, _ in self._walk(block)]
        return np.stack(contexts, axis=1) if contexts else self.start(len(block.tokens))

    def _walk(
        self, block: TokenBlock
    ) -> Iterator[tuple[NgramTable, NDArray[np.int64], NDArray[np.int64]]]:
        """For each order from 2 on: its table, the places (T,) of the contexts, and those of the
        n-grams that end at each token."""
        tokens_T = block.tokens.astype(np.int64)
        place_T = tokens_T
        for table in self.tables:
            context_T = np.roll(place_T, 1)
            context_T[block.starts] = ABSENT
            place_T = table.find(context_T, tokens_T)
            yield table, context_T, place_T
