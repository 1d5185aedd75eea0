"""What follows a text by an n-gram model, in the manner of a neural one's decoder and scorer.

B rows, T new tokens, V vocabulary, K places of a context (order − 1), P scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.inference.scoring import QUERIES_AHEAD, Query, QueryScores, Score
from llmctl.models.ngram.counts import TokenBlock
from llmctl.models.ngram.model import NgramModel

ENTRIES_AT_ONCE = 1 << 22
"""Probabilities made together where every word's is asked: 32 MiB."""


class NgramDecoder:
    """An n-gram model as ``llmctl.inference.decoder.DecoderRunner``; logits are
    log-probabilities."""

    max_positions: int | None = None
    """A text may have any length: what is more than ``order`` − 1 tokens back is not looked at."""

    def __init__(self, model: NgramModel) -> None:
        self.model, self.vocab_size = model, model.vocab_size
        self.places_BK: NDArray[np.int64] = model.start(0)

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """Begin anew with a row for each prompt; returns the logits (B, V) of what follows each.
        A table needs no ``room``."""
        self.places_BK = self.model.start(len(prompts))
        reach = self.model.order - 1
        for back in range(reach, 0, -1):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) >= back]
            words = np.array([prompts[row][-back] for row in rows], dtype=np.int64)
            self.places_BK[rows] = self.model.read(self.places_BK[rows], words)
        return self._logits()

    def extend(self, ids_BT: Tensor) -> Tensor:
        """Read more tokens in every row; returns the logits (B, T, V) after each of them."""
        logits = []
        for word_B in ids_BT.numpy().T:
            self.places_BK = self.model.read(self.places_BK, word_B)
            logits.append(self._logits())
        return torch.stack(logits, dim=1)

    def select(self, rows_R: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        self.places_BK = self.places_BK[rows_R.numpy()]

    def _logits(self) -> Tensor:
        probability_BV = self.model.distribution(self.places_BK)
        return torch.from_numpy(np.log(probability_BV, out=probability_BV).astype(np.float32))


class NgramScorer:
    """An n-gram model as ``llmctl.inference.scoring.Scorer``."""

    longest: int | None = None
    """A text may have any length."""

    def __init__(self, model: NgramModel) -> None:
        self.model = model

    def score(self, queries: Iterable[Query], *, greedy: bool = False) -> Iterator[QueryScores]:
        """Score queries as ``Scorer`` says; no context is cut, as what lies further back is not
        looked at."""
        stream = iter(queries)
        while block := list(islice(stream, QUERIES_AHEAD)):
            yield from self._score_block(block, greedy)

    def _score_block(self, queries: Sequence[Query], greedy: bool) -> Iterator[QueryScores]:
        # One token at least, which a text begins with and is not scored.
        reach = max(self.model.order - 1, 1)
        texts = [
            (query.context[-reach:], continuation)
            for query in queries
            for continuation in query.continuations
        ]
        lengths = np.array([len(context) + len(text) for context, text in texts])
        ends = np.cumsum(lengths)
        block = TokenBlock(
            np.concatenate([part for text in texts for part in text]), ends - lengths
        )
        log_probs = self.model.log_probabilities(block)
        alike = self._likeliest(block) == block.tokens if greedy else None
        slices = iter(
            [
                slice(end - len(text), end)
                for end, (_, text) in zip(ends.tolist(), texts, strict=True)
            ]
        )
        for query in queries:
            own = islice(slices, len(query.continuations))
            yield QueryScores(
                [Score(log_probs[s], None if alike is None else bool(alike[s].all())) for s in own],
                cut=0,
            )

    def _likeliest(self, block: TokenBlock) -> NDArray[np.int64]:
        """The likeliest token at each place, (T,)."""
        places_TK = self.model.places(block)
        rows = max(1, ENTRIES_AT_ONCE // self.model.vocab_size)
        return np.concatenate(
            [
                self.model.distribution(places_TK[begin : begin + rows]).argmax(axis=1)
                for begin in range(0, len(places_TK), rows)
            ]
        )
