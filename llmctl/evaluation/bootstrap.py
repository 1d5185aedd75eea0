"""Intervals by the percentile bootstrap (Efron 1979): score the same examples drawn again.

Drawing N examples with replacement changes nothing but how often each *kind* of example occurs,
so a resample is one multinomial draw over the kinds: its cost doesn't depend on N. What it leaves
out: where every example is alike (all right, say), every resample is too and the interval is a
point; it tells nothing of what a larger test set would show.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def percentile_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """The central ``confidence`` of the values, between which the statistic lies.

    Raises ValueError if there are none, one is NaN, or confidence isn't between 0 and 1.

    >>> percentile_interval(range(101), 0.5)
    (25.0, 75.0)
    """
    values_R = np.asarray(values, dtype=np.float64)
    if values_R.ndim != 1 or not values_R.size:
        raise ValueError(f"an interval needs a list of values, not an array of {values_R.shape}")
    if np.isnan(values_R).any():
        raise ValueError("an interval of values of which some are NaN")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values_R, [tail, 1.0 - tail])
    return float(low), float(high)


def resample_counts(
    counts_K: NDArray[np.int64], resamples: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """How often each kind of example occurs in each resample: (resamples, K), rows sum to N.

    counts_K: how many of the N examples are of each kind. Raises ValueError if there are none.
    """
    total = int(counts_K.sum())
    if total < 1 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {total} examples")
    return generator.multinomial(total, counts_K / total, size=resamples)


def paired_difference(
    correct_a_N: ArrayLike,
    correct_b_N: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, float | int]:
    """Accuracy of A less that of B on the examples that both answered, as JSON values.

    Returns ``difference`` with its interval ``low`` and ``high``, and how many examples A alone
    (``only_a``) and B alone (``only_b``) got right. Examples are resampled in pairs: what both
    find easy or hard cancels, so the interval is narrower than two separate ones suggest. Raises
    ValueError if the lengths differ or are zero.
    """
    a_N, b_N = np.asarray(correct_a_N, dtype=bool), np.asarray(correct_b_N, dtype=bool)
    if a_N.ndim != 1 or a_N.shape != b_N.shape or not a_N.size:
        raise ValueError(f"paired answers of shapes {a_N.shape} and {b_N.shape}")
    only_a, only_b = int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
    kinds_K = np.array([only_a, only_b, a_N.size - only_a - only_b])
    drawn_RK = resample_counts(kinds_K, resamples, np.random.default_rng(seed))
    low, high = percentile_interval((drawn_RK[:, 0] - drawn_RK[:, 1]) / a_N.size, confidence)
    return {
        "difference": (only_a - only_b) / a_N.size,
        "low": low,
        "high": high,
        "only_a": only_a,
        "only_b": only_b,
    }
