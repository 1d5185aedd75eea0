"""Metrics of a classifier, nearly all of them functions of its confusion matrix.

They take one matrix or a stack of them, (..., C, C), and return (...): the bootstrap scores all
its resamples in one call. Where a ratio has nothing below its line (precision of a class never
predicted, any metric of no examples) it is 0, as in scikit-learn.
"""

# N examples, C classes, R resamples, K occupied cells of the confusion matrix, B bins

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmctl.evaluation.bootstrap import percentile_interval, resample_counts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CELLS_AT_ONCE = 4_000_000
"""Cells of resampled confusion matrices held together: 32 MB, however many classes there are."""


def confusion_matrix(true_N: ArrayLike, predicted_N: ArrayLike, num_classes: int) -> Ints:
    """How often each class (row) was taken for each class (column).

    Raises ValueError if the lengths differ or a label is outside 0 … num_classes - 1.
    """
    true, predicted = np.asarray(true_N), np.asarray(predicted_N)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ValueError(f"true and predicted labels of shapes {true.shape} and {predicted.shape}")
    for name, labels in (("true", true), ("predicted", predicted)):
        if not labels.size:
            continue
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{name} labels are {labels.dtype}, not integers")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"{name} labels outside 0 … {num_classes - 1}")
    cells = true.astype(np.int64) * num_classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusion: Ints) -> Floats:
    """Share of the examples whose class was found."""
    return _ratio(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def f1_scores(confusion: Ints) -> Floats:
    """F1 of each class, (..., C): the harmonic mean of its precision and recall."""
    return _ratio(2 * _hits(confusion), confusion.sum(-1) + confusion.sum(-2))


def macro_f1(confusion: Ints) -> Floats:
    """Mean F1 of the classes that occur, in the truth or in the predictions.

    One that occurs in neither has no F1; scikit-learn leaves it out too.
    """
    occurs = (confusion.sum(-1) + confusion.sum(-2)) > 0
    return _ratio(f1_scores(confusion).sum(-1), occurs.sum(-1))


def micro_f1(confusion: Ints) -> Floats:
    """F1 of all decisions pooled.

    With one label to an example each miss is a false positive of one class and a false negative
    of another, so this is the accuracy; it is here because readers look for it by name.
    """
    hits = _hits(confusion).sum(-1)
    misses = confusion.sum((-2, -1)) - hits
    return _ratio(2 * hits, 2 * hits + misses + misses)


def matthews_correlation(confusion: Ints) -> Floats:
    """Correlation of truth and prediction, R_K (Gorodkin 2004), from -1 to 1.

    0 is what guessing gets, however unequal the classes, and what is reported where truth or
    prediction is a single class.
    """
    # In floats: the products outgrow int64 from some 50,000 examples on.
    true, predicted = confusion.sum(-1).astype(float), confusion.sum(-2).astype(float)
    hits, total = _hits(confusion).sum(-1).astype(float), confusion.sum((-2, -1)).astype(float)
    covariance = hits * total - (true * predicted).sum(-1)
    spread_true = total**2 - (true**2).sum(-1)
    spread_predicted = total**2 - (predicted**2).sum(-1)
    return _ratio(covariance, np.sqrt(spread_true) * np.sqrt(spread_predicted))


def expected_calibration_error(
    probabilities_NC: ArrayLike, true_N: ArrayLike, num_bins: int = 15
) -> float:
    """Mean gap between how sure the predictions are and how often they are right.

    Guo et al. 2017: bins of equal width, each without its lower edge, over the probability of the
    predicted class; each bin's gap weighs by its examples.
    """
    probabilities, true = _checked(probabilities_NC, true_N)
    predicted = probabilities.argmax(-1)
    confidence = probabilities[np.arange(len(true)), predicted]
    upper_edges_B = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(upper_edges_B, confidence, side="left")
    gaps_B = np.bincount(bins, weights=(predicted == true) - confidence, minlength=num_bins)
    return float(np.abs(gaps_B).sum() / len(true))


INTERVALS: dict[str, Callable[[Ints], Floats]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "mcc": matthews_correlation,
}
"""The metrics that are reported with an interval."""


def report(
    probabilities_NC: ArrayLike,
    true_N: ArrayLike,
    label_names: Sequence[str],
    *,
    predicted_N: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Everything said about a classifier, as JSON values.

    predicted_N: what is given for each example; by default the most probable class, the first of
    equals. A resample that misses a rare class
    has its macro F1 over the classes left. Raises ValueError if shapes differ, there are no
    examples, or a probability isn't one.
    """
    probabilities, true = _checked(probabilities_NC, true_N)
    if len(label_names) != probabilities.shape[1]:
        raise ValueError(f"{len(label_names)} label names for {probabilities.shape[1]} classes")
    predicted = probabilities.argmax(-1) if predicted_N is None else predicted_N
    confusion = confusion_matrix(true, predicted, len(label_names))
    precision_C = _ratio(_hits(confusion), confusion.sum(-2))
    recall_C = _ratio(_hits(confusion), confusion.sum(-1))
    f1_C = f1_scores(confusion)
    support_C = confusion.sum(-1)
    return {
        "examples": len(true),
        "accuracy": float(accuracy(confusion)),
        "macro_f1": float(macro_f1(confusion)),
        "micro_f1": float(micro_f1(confusion)),
        "mcc": float(matthews_correlation(confusion)),
        "expected_calibration_error": expected_calibration_error(probabilities, true),
        "intervals": _intervals(confusion, resamples, seed, confidence),
        "confidence": confidence,
        "resamples": resamples,
        "classes": [
            {
                "label": name,
                "precision": float(precision_C[c]),
                "recall": float(recall_C[c]),
                "f1": float(f1_C[c]),
                "support": int(support_C[c]),
            }
            for c, name in enumerate(label_names)
        ],
        "confusion_matrix": confusion.tolist(),
    }


def _intervals(
    confusion: Ints, resamples: int, seed: int, confidence: float
) -> dict[str, list[float]]:
    """[low, high] of each metric of ``INTERVALS``."""
    occupied_K = np.flatnonzero(confusion)
    drawn_RK = resample_counts(
        confusion.reshape(-1)[occupied_K], resamples, np.random.default_rng(seed)
    )
    scores: dict[str, list[Floats]] = {name: [] for name in INTERVALS}
    rows = max(1, CELLS_AT_ONCE // confusion.size)
    for start in range(0, resamples, rows):
        part_RK = drawn_RK[start : start + rows]
        stack = np.zeros((len(part_RK), confusion.size), dtype=np.int64)
        stack[:, occupied_K] = part_RK
        stack_RCC = stack.reshape(-1, *confusion.shape)
        for name, metric in INTERVALS.items():
            scores[name].append(metric(stack_RCC))
    return {
        name: list(percentile_interval(np.concatenate(parts), confidence))
        for name, parts in scores.items()
    }


def _checked(probabilities_NC: ArrayLike, true_N: ArrayLike) -> tuple[Floats, NDArray[Any]]:
    probabilities, true = np.asarray(probabilities_NC, dtype=np.float64), np.asarray(true_N)
    if probabilities.ndim != 2 or true.shape != probabilities.shape[:1] or not true.size:
        raise ValueError(f"probabilities {probabilities.shape} for labels {true.shape}")
    # Half-precision softmaxes overshoot 1 by their rounding; logits overshoot by far more.
    if not ((probabilities >= 0) & (probabilities <= 1.01)).all():
        raise ValueError("probabilities that are NaN or outside 0 … 1 (logits?)")
    return probabilities, true


def _hits(confusion: Ints) -> Ints:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """The ratio above / below, and 0 where there is nothing below."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
