"""How well scores tell what is there from what isn't: the area under the ROC curve.

It is the probability that something that is there has the larger score than something that isn't, a
tie counting half (Mann and Whitney 1947; Hanley and McNeil 1982), so that guessing has a half
whatever the shares of the two are.

N things, G distinct scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Ranking:
    """Scores in their order, for the area under the curve of any weighting of the things."""

    def __init__(self, scores_N: ArrayLike, positive_N: ArrayLike) -> None:
        """positive_N: whether each is there. Raises ValueError where the lengths differ."""
        self._positive_N = np.asarray(positive_N, dtype=bool)
        scores = np.asarray(scores_N, dtype=np.float64)
        if scores.shape != self._positive_N.shape or scores.ndim != 1:
            raise ValueError(f"scores of shape {scores.shape} for {self._positive_N.shape}")
        distinct_G, self._group_N = np.unique(scores, return_inverse=True)
        self._groups = len(distinct_G)

    def area(self, weights_N: NDArray[np.float64] | None = None) -> float | None:
        """The area under the ROC curve; None where nothing, or everything, is there.

        >>> Ranking([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).area()
        0.75
        """
        weights_N = np.ones(len(self._group_N)) if weights_N is None else weights_N
        there_G, not_G = (
            np.bincount(self._group_N, weights_N * kind_N, self._groups)
            for kind_N in (self._positive_N, ~self._positive_N)
        )
        pairs = there_G.sum() * not_G.sum()
        if not pairs:
            return None
        below_G = np.cumsum(not_G) - not_G / 2
        return float((there_G * below_G).sum() / pairs)
