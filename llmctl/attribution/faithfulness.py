"""Whether weights tell what decided: curves of deletion and of insertion (Samek et al. 2017;
Petsiuk et al. 2018), beside those of random orders.

Deletion: words are left out one after another, the weightiest first; the sooner the answer goes,
the better. Insertion: into a text without words they are put back in that order; the sooner it
comes, the better. A curve's area is the mean of the answer's number on the way, counted so that the
whole text is 1 and the text without words 0.

    faithfulness = ½ (area of insertion − area of deletion) − the same of random orders

W words, K steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.attribution.explained import ExplainedText, Floats
from llmctl.data.random import key_of, permute

RANDOM_ORDERS = 8
CURVE_STEPS = 20
"""Steps of a curve at most: with more words, several go at once."""
LEAST_CHANGE = 1e-6
"""Where leaving out every word changes the answer's number less, there is nothing to explain."""


@dataclass(frozen=True)
class Faithfulness:
    """The areas of a text's curves, for some weights and for random orders."""

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float

    @property
    def better(self) -> float:
        """By how much the weights' order is better than chance; above 0 it tells something."""
        random = self.random_insertion - self.random_deletion
        return (self.insertion - self.deletion - random) / 2

    def record(self) -> dict[str, Any]:
        """The areas as JSON values."""
        return {
            "deletion": self.deletion,
            "insertion": self.insertion,
            "random_deletion": self.random_deletion,
            "random_insertion": self.random_insertion,
            "faithfulness": self.better,
        }


class Curves:
    """The curves of one text."""

    def __init__(self, text: ExplainedText) -> None:
        self._text, W = text, len(text.words)
        steps = min(W, CURVE_STEPS)
        self._cuts = np.unique(np.rint(np.linspace(0, W, steps + 1)).astype(np.int64))
        key = key_of("random orders", W)
        orders = [permute(key + n, W, np.arange(W)) for n in range(RANDOM_ORDERS)]
        areas = np.array([self._areas(order) for order in orders])
        self._random = areas.mean(0)

    def of(self, weights_W: Floats) -> Faithfulness:
        """The areas where the weightiest word comes first."""
        deletion, insertion = self._areas(np.argsort(-weights_W, kind="stable"))
        return Faithfulness(deletion, insertion, *self._random.tolist())

    def _areas(self, order_W: NDArray[np.int64]) -> tuple[float, float]:
        rank_W = np.empty_like(order_W)
        rank_W[order_W] = np.arange(len(order_W))
        first_KW = rank_W < self._cuts[:, None]
        scores = self._text.scores(np.vstack([~first_KW, first_KW]))
        deleted_K, inserted_K = np.split(scores, 2)
        whole = deleted_K[0] - inserted_K[0]
        if abs(whole) < LEAST_CHANGE:
            return 0.0, 0.0
        shares = self._cuts / self._cuts[-1]
        areas = [
            float(np.trapezoid((curve_K - inserted_K[0]) / whole, shares))
            for curve_K in (deleted_K, inserted_K)
        ]
        return areas[0], areas[1]
