"""N-gram language models: the probability of a word from the few before it, by counting.

w word, h the n − 1 words before it (its context), h′ the same without the first, c how often an
n-gram occurs, V words in the vocabulary, n_r how many n-grams of an order have count r, N₁₊(·) how
many different words stand there. A context reaches back to the start of its document, which has
one start token: the first word is predicted from that alone.

**Interpolated modified Kneser-Ney** (Chen and Goodman 1998, TR-10-98, §4.1.5 and eq. 26):

    P(w|h) = (a(h w) − D(a(h w))) / Σ_v a(h v)  +  γ(h) P(w|h′),      P(w|) at the end: 1/V
    γ(h)   = (D₁ N₁(h ·) + D₂ N₂(h ·) + D₃₊ N₃₊(h ·)) / Σ_v a(h v)
    Y = n₁/(n₁ + 2n₂),   D₁ = 1 − 2Y n₂/n₁,   D₂ = 2 − 3Y n₃/n₂,   D₃₊ = 3 − 4Y n₄/n₃

with D and n_r of each order, and N_r(h ·) the words with a(h w) = r. In the highest order a is the
count c; in lower ones the number of different words before the n-gram, a(h w) = N₁₊(· h w), but
for those that begin with a document's start, which has nothing before it: c again. (These, and the
discounts where the n_r don't give 0 < D_r ≤ r, are Heafield et al. 2013's, KenLM: 0.5, 1, 1.5.)

**Katz's back-off** (1987) with Good-Turing discounts up to k = 5:

    P(w|h) = d_c c(h w) / Σ_v c(h v)  if c(h w) > 0,   else  α(h) P(w|h′)
    d_r = (r*/r − A) / (1 − A),   r* = (r + 1) n_{r+1}/n_r,   A = (k + 1) n_{k+1}/n₁;   d_r = 1 > k

with α(h) such that the sum is 1. Where the n_r don't give 0 < d_r ≤ 1, d_r = (r − ½)/r; a context
that would leave nothing to unseen words, all its words being frequent, counts one unseen word.

**Add-k** (Lidstone 1920): P(w|h) = (c(h w) + k) / (Σ_v c(h v) + k V), with no look at h′.

Where rare n-grams are pruned, discounts and Kneser-Ney's a are still from all, and what the pruned
had goes to γ or α; add-k forgets them.

N n-grams of an order, C their contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field, model_validator

from llmctl.config import Config
from llmctl.models.ngram.counts import Level, TokenBlock, count_ngrams, prune
from llmctl.models.ngram.model import NgramModel, NgramTable

Smoothing = Literal["kneser-ney", "katz", "add-k"]

CUTOFF = 5
"""Katz's k: counts above it are taken to be reliable."""
FALLBACK_KNESER_NEY = (0.5, 1.0, 1.5)
"""KenLM's, for text that is too small or too regular to tell the discounts from."""
DEFAULT_K = 0.001
"""The default k: of 1, 0.1, … 0.00001 the best at order 5 on Wikipedia's text, and next to best on
code."""


class NgramConfig(Config):
    """What is counted, and how probability is left to what was not seen."""

    order: int = Field(5, ge=1, le=100, strict=True)
    """Tokens of an n-gram: each is predicted from up to order − 1 before it."""
    smoothing: Smoothing = "kneser-ney"
    """Smoothing: kneser-ney (interpolated, modified), katz (back-off with Good-Turing discounts) or
    add-k."""
    k: float | None = Field(None, gt=0, allow_inf_nan=False)
    """What add-k adds to each count; unset: 0.001."""
    min_count: int = Field(1, ge=1, strict=True)
    """N-grams of order 2 and more that occur less often are not kept."""

    @model_validator(mode="after")
    def _check(self) -> NgramConfig:
        if self.k is not None and self.smoothing != "add-k":
            raise ValueError(
                f"model.k is for model.smoothing=add-k, and it is {self.smoothing}; leave it out"
            )
        return self


@dataclass(frozen=True)
class Trained:
    """A model and how it came to be."""

    model: NgramModel
    discounts: list[list[float]]
    """The discounts of each order: Kneser-Ney's D₁, D₂, D₃₊, or Katz's d₁ … d₅."""
    thin: list[int]
    """Orders whose counts were too few to tell the discounts from: they have the fixed ones."""


def train(
    blocks: Sequence[TokenBlock],
    vocab_size: int,
    bos: int,
    config: NgramConfig,
    *,
    dtype: DTypeLike = np.float64,
    progress: Callable[[int], None] = lambda order: None,
) -> Trained:
    """Count the n-grams of documents and estimate their probabilities.

    bos: the token at a document's start. dtype: of the probabilities kept; float32, as a model
    folder has them, is exact to 7 digits. ``progress`` is told of each order that is counted.
    """
    levels = count_ngrams(blocks, config.order, vocab_size, progress)
    often = [level.count >= config.min_count for level in levels[1:]]
    if config.smoothing == "kneser-ney":
        levels = adjusted(levels, bos)
    totals = [level.sum(level.count) for level in levels]
    fit = {"kneser-ney": _kneser_ney_discounts, "katz": _good_turing}.get(config.smoothing)
    fitted = [fit(level.count) for level in levels] if fit else []
    if config.min_count > 1:
        kept = [np.ones(vocab_size, dtype=bool), *often]
        levels = prune(levels, kept)
        totals[1:] = [total[keep] for total, keep in zip(totals[1:], kept[:-1], strict=True)]
    below = np.array([1 / vocab_size])
    tables = []
    for number, (level, total_C) in enumerate(zip(levels, totals, strict=True)):
        below_N = below[level.suffix]
        if config.smoothing == "kneser-ney":
            below, weight_C = kneser_ney(level, total_C, below_N, fitted[number][0])
        elif config.smoothing == "katz":
            below, weight_C = katz(level, total_C, below_N, fitted[number][0], vocab_size)
        else:
            below, weight_C = add_k(level, config.k or DEFAULT_K, vocab_size)
        if number:
            tables.append(_table(level, below, weight_C, np.dtype(dtype)))
        else:
            unigram = below.astype(dtype)
    model = NgramModel(unigram, tables, backs_off=config.smoothing != "add-k")
    return Trained(
        model,
        [discounts.tolist() for discounts, _ in fitted],
        [number for number, (_, thin) in enumerate(fitted, 1) if thin],
    )


def _table(level: Level, probability_N: Any, backoff_C: Any, dtype: np.dtype[Any]) -> NgramTable:
    offsets = np.uint32 if len(level) < 1 << 32 else np.int64
    return NgramTable(
        first=level.first.astype(offsets),
        backoff=backoff_C.astype(dtype),
        word=level.word,
        probability=probability_N.astype(dtype),
    )


def adjusted(levels: Sequence[Level], bos: int) -> list[Level]:
    """The levels with Kneser-Ney's a for their counts."""
    result = []
    begins = levels[0].word == bos
    for number, level in enumerate(levels):
        if number:
            begins = level.spread(begins)
        if number + 1 == len(levels):
            result.append(level)
            continue
        different = np.bincount(levels[number + 1].suffix, minlength=len(level))
        # The start alone is never predicted: as a word it is what ends a document, or nothing.
        count = np.where(begins, level.count, different) if number else different
        result.append(replace(level, count=count))
    return result


def _kneser_ney_discounts(count_N: NDArray[np.int64]) -> tuple[NDArray[np.float64], bool]:
    """D₁, D₂, D₃₊, and whether they are the fixed ones."""
    n = np.bincount(np.minimum(count_N, 5), minlength=6).astype(np.float64)
    if n[1:4].all():
        y = n[1] / (n[1] + 2 * n[2])
        r = np.arange(1, 4)
        discounts = r - (r + 1) * y * n[2:5] / n[1:4]
        if (discounts > 0).all() and (discounts <= r).all():
            return discounts, False
    return np.array(FALLBACK_KNESER_NEY), True


def kneser_ney(
    level: Level,
    total_C: NDArray[np.int64],
    below_N: NDArray[np.float64],
    discounts: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(w|h), (N,), and γ(h), (C,).

    total_C: Σ a, pruned n-grams included. below_N: P(w|h′).
    """
    discount_N = np.concatenate(([0.0], discounts))[np.minimum(level.count, 3)]
    # The pruned lose all of their count.
    lost_C = level.sum(discount_N) + (total_C - level.sum(level.count))
    gamma_C = np.divide(lost_C, total_C, out=np.ones(len(total_C)), where=total_C > 0)
    total_N = level.spread(total_C)
    return (level.count - discount_N) / total_N + level.spread(gamma_C) * below_N, gamma_C


def _good_turing(count_N: NDArray[np.int64]) -> tuple[NDArray[np.float64], bool]:
    """The discounts d₁ … d₅, and whether they are the fixed ones."""
    n = np.bincount(np.minimum(count_N, CUTOFF + 2), minlength=CUTOFF + 3).astype(np.float64)
    r = np.arange(1, CUTOFF + 1)
    if n[r].all() and (common := (CUTOFF + 1) * n[CUTOFF + 1] / n[1]) < 1:
        factors = ((r + 1) * n[r + 1] / (r * n[r]) - common) / (1 - common)
        if (factors > 0).all() and (factors <= 1).all():
            return factors, False
    return (r - 0.5) / r, True


def katz(
    level: Level,
    total_C: NDArray[np.int64],
    below_N: NDArray[np.float64],
    factors: NDArray[np.float64],
    vocab_size: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(w|h), (N,), and α(h), (C,). Arguments as of ``kneser_ney``; factors: d₁ … d₅."""
    count_N = level.count
    factor_N = np.concatenate(([1.0], factors, [1.0]))[np.minimum(count_N, CUTOFF + 1)]
    seen_N = count_N > 0
    lost_C = level.sum((1 - factor_N) * count_N) + (total_C - level.sum(count_N))
    # Behind some contexts every word there is was seen: nothing is to be left to others.
    complete_C = level.sum(seen_N.astype(np.int64)) == vocab_size
    factor_N[level.spread(complete_C)] = 1.0
    nothing_left_C = (lost_C == 0) & ~complete_C
    lost_C = np.where(complete_C, 0.0, lost_C + nothing_left_C)
    total_C = total_C + nothing_left_C
    unseen_below_C = 1 - level.sum(np.where(seen_N, below_N, 0.0))
    # Of no effect but on what rounding leaves of nearly complete contexts.
    unseen_below_C = np.maximum(unseen_below_C, np.finfo(np.float64).eps)
    alpha_C = np.ones(len(total_C))
    np.divide(lost_C, total_C * unseen_below_C, out=alpha_C, where=(total_C > 0) & ~complete_C)
    probability_N = factor_N * count_N / level.spread(total_C)
    return np.where(seen_N, probability_N, level.spread(alpha_C) * below_N), alpha_C


def add_k(
    level: Level, k: float, vocab_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(w|h), (N,), and the weight (C,) of 1/V for words that were not seen behind h."""
    total_C = level.sum(level.count) + k * vocab_size
    return (level.count + k) / level.spread(total_C), k * vocab_size / total_C
