"""Perplexity and bits per byte of text under a language model, with a sliding window.

A document is BOS d₁ … dₙ EOS; every dᵢ and EOS is predicted from what precedes it in the document:

    loss = −1/N Σ log P(token)   in nats, N the tokens of all documents, EOS counted
    perplexity = exp(loss)
    bits per byte = −Σ log₂ P(token) / bytes of text in UTF-8

Perplexities of models compare where they have the same tokens, bits per byte always. A model reads
``window`` tokens at once. Longer documents are read in windows that move on by ``stride`` tokens:
each scores the tokens that no window before it did, so that each token is scored once, behind at
least ``window − stride`` tokens where the document has as many. A stride of the window's length is
fastest and leaves the first tokens of each window without context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmctl.evaluation.bootstrap import percentile_interval, resample_counts

GROUPS = 1000
"""Groups of documents that are drawn again together."""

TokenIds = NDArray[np.int64]
LogProbs = Callable[[Iterable[tuple[TokenIds, TokenIds]]], Iterator[NDArray[np.float64]]]
"""From (context, continuation) pairs to the log-probabilities of the continuations' tokens."""


@dataclass(frozen=True)
class Passage:
    """A document: its tokens with those around it, and the UTF-8 bytes of its text."""

    ids: TokenIds
    size: int


@dataclass
class Tally:
    """What was scored so far."""

    nll: float = 0.0
    """Nats."""
    tokens: int = 0
    bytes: int = 0
    documents: int = 0
    parts: list[tuple[float, int]] = field(default_factory=list)
    """Nats and bytes of each document, where they were counted one by one."""

    @property
    def loss(self) -> float:
        """Nats for each token."""
        return self.nll / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        """Infinite where a token was impossible."""
        return math.exp(self.loss) if self.loss < math.log(1e300) else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nll / math.log(2) / max(self.bytes, 1)

    def report(self) -> dict[str, float | int]:
        """The figures as JSON values."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": self.documents,
        }


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, stop) of each window of a document of so many tokens: it reads from ``start``
    on and scores ``first`` … ``stop − 1``.

    >>> list(windows(9, window=4, stride=2))
    [(0, 1, 5), (2, 5, 7), (4, 7, 9)]
    """
    if not 1 <= stride <= window:
        raise ValueError(f"a stride of {stride} for a window of {window}")
    first = 1
    while first < length:
        # What the last token is predicted from ends before it.
        stop = min(first + (stride if first > 1 else window), length)
        yield max(0, stop - 1 - window), first, stop
        first = stop


def perplexity(
    passages: Iterable[Passage],
    log_probs: LogProbs,
    *,
    window: int,
    stride: int,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Score documents. ``progress`` is told after each window."""
    counted, read = tee(passages)
    scores = log_probs(
        (passage.ids[start:first], passage.ids[first:stop])
        for passage in read
        for start, first, stop in windows(len(passage.ids), window, stride)
    )
    tally = Tally()
    for passage in counted:
        nll = 0.0
        for _, first, stop in windows(len(passage.ids), window, stride):
            nll -= float(next(scores).sum())
            tally.tokens += stop - first
            progress(tally)
        tally.nll += nll
        tally.bytes += passage.size
        tally.documents += 1
        tally.parts.append((nll, passage.size))
    return tally


def bits_per_byte_interval(
    nll_N: ArrayLike, bytes_N: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of documents' bits per byte, by the bootstrap over documents; None for
    fewer than two.

    nll_N: nats of each document, or the nats that two models differ by. Documents count in up to
    ``GROUPS`` groups of neighbours, so that the cost doesn't grow with their number.
    """
    nll, size = np.asarray(nll_N, dtype=np.float64), np.asarray(bytes_N, dtype=np.float64)
    if len(nll) < 2:
        return None
    firsts = np.unique(np.linspace(0, len(nll), min(len(nll), GROUPS), endpoint=False, dtype=int))
    nll_G, bytes_G = np.add.reduceat(nll, firsts), np.add.reduceat(size, firsts)
    kinds_G = np.ones(len(firsts), dtype=np.int64)
    drawn_RG = resample_counts(kinds_G, resamples, np.random.default_rng(seed))
    bits_R = (drawn_RG @ nll_G) / (drawn_RG @ bytes_G) / math.log(2)
    return percentile_interval(bits_R)
