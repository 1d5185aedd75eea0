"""Metrics of a classifier that gives each text any number of labels.

Each label is a question of its own, answered yes where its probability reaches its threshold. Where
a ratio has nothing below its line it is 0, as in scikit-learn.
"""

# N examples, C labels, R resamples

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.evaluation.bootstrap import percentile_interval

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RESAMPLED_TOGETHER = 100
DEFAULT_THRESHOLD = 0.5


def average_precision(true_N: Bools, scores_N: Floats) -> float:
    """Σ (recallₙ − recallₙ₋₁) · precisionₙ over falling thresholds, equal scores together; 0 where
    nothing is true."""
    if not true_N.any():
        return 0.0
    order = np.argsort(-scores_N, kind="stable")
    hits = np.cumsum(true_N[order])
    last = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True))
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def best_threshold(true_N: Bools, scores_N: Floats) -> float:
    """The threshold with the best F1 on some examples, midway between two scores, and of equals the
    one nearest to 0.5; 0.5 where nothing is true, or everything."""
    if not true_N.any() or true_N.all():
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores_N, kind="stable")
    scores, hits = scores_N[order], np.cumsum(true_N[order])
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    f1 = 2 * hits[last] / (last + 1 + hits[-1])
    below = np.append(scores[last[:-1] + 1], 0.0)
    middles = (scores[last] + below) / 2
    best = middles[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - DEFAULT_THRESHOLD).argmin()])


def f1_of(hits: Any, given: Any, true: Any) -> Any:
    """F1 from how many were right, given and true."""
    hits, below = np.asarray(hits, dtype=np.float64), np.asarray(given) + np.asarray(true)
    return np.divide(2 * hits, below, out=np.zeros_like(hits), where=below > 0)


def resampled_f1(given_NC: Bools, true_NC: Bools, *, resamples: int, seed: int) -> Floats:
    """Micro and macro F1 of resamples of the examples, (R, 2)."""
    generator, parts = np.random.default_rng(seed), []
    counts = [array.astype(np.float64) for array in (given_NC & true_NC, given_NC, true_NC)]
    total = len(true_NC)
    for begin in range(0, resamples, RESAMPLED_TOGETHER):
        size = min(RESAMPLED_TOGETHER, resamples - begin)
        drawn_RN = generator.multinomial(total, np.full(total, 1 / total), size=size)
        hits, given, true = (drawn_RN @ count_NC for count_NC in counts)
        micro = f1_of(hits.sum(1), given.sum(1), true.sum(1))
        parts.append(np.stack([micro, f1_of(hits, given, true).mean(1)], axis=1))
    return np.concatenate(parts)


def report(
    probabilities_NC: Floats,
    true_NC: Bools,
    thresholds_C: Floats,
    label_names: Sequence[str],
    drawn_R2: Floats,
) -> dict[str, Any]:
    """Everything said about a classifier of several labels, as JSON values. drawn_R2: its micro and
    macro F1 in resamples."""
    given_NC = probabilities_NC >= thresholds_C
    hits_C, given_C, true_C = (array.sum(0) for array in (given_NC & true_NC, given_NC, true_NC))
    precisions = [
        average_precision(true_NC[:, c], probabilities_NC[:, c]) for c in range(len(label_names))
    ]
    f1_C = f1_of(hits_C, given_C, true_C)
    low_high = [list(percentile_interval(drawn_R2[:, column])) for column in (0, 1)]
    return {
        "examples": len(true_NC),
        "micro_f1": float(f1_of(hits_C.sum(), given_C.sum(), true_C.sum())),
        "macro_f1": float(f1_C.mean()),
        "mean_average_precision": float(np.mean(precisions)),
        "micro_average_precision": average_precision(true_NC.ravel(), probabilities_NC.ravel()),
        "exact_match": float((given_NC == true_NC).all(1).mean()),
        "intervals": {"micro_f1": low_high[0], "macro_f1": low_high[1]},
        "classes": [
            {
                "label": name,
                "f1": float(f1_C[c]),
                "average_precision": precisions[c],
                "threshold": float(thresholds_C[c]),
                "support": int(true_C[c]),
            }
            for c, name in enumerate(label_names)
        ],
    }
