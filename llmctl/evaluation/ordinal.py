"""Metrics of classes that are in an order: how far off an answer is counts, too."""

# N examples, C classes in rising order

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.evaluation.classification import confusion_matrix

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def median_class(probabilities_NC: Floats) -> Ints:
    """The class that as much lies below as above, (N,): how many questions "more than c?" are
    answered yes (Li and Lin 2006). Of all answers it is expected to be least far off."""
    below_NC = np.cumsum(probabilities_NC, axis=1)[:, :-1]
    found: Ints = (1.0 - below_NC > 0.5).sum(1)
    return found


def quadratic_kappa(true_N: Ints, given_N: Ints, classes: int) -> float:
    """Cohen's κ with errors weighed by their square (Cohen 1968): 1 where all is right, 0 by
    chance, and 0 where truth and answers are one class alone."""
    confusion = confusion_matrix(true_N, given_N, classes).astype(np.float64)
    places = np.arange(classes)
    weights = np.square(places[:, None] - places[None, :])
    expected = np.outer(confusion.sum(1), confusion.sum(0)) / confusion.sum()
    below = float((weights * expected).sum())
    return 1.0 - float((weights * confusion).sum()) / below if below else 0.0


def figures(true_N: Ints, given_N: Ints, classes: int) -> dict[str, Any]:
    """The mean distance of answers from the truth, in classes, and κ."""
    return {
        "mean_error": float(np.abs(true_N - given_N).mean()),
        "quadratic_kappa": quadratic_kappa(true_N, given_N, classes),
    }
