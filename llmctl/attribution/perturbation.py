"""Weights from leaving words out.

R rows, W words.
"""

from __future__ import annotations

import numpy as np

from llmctl.attribution.explained import AttributionMethod, ExplainedText, Floats
from llmctl.data.random import key_of, permute

PERMUTATIONS = 16
"""Orders in which words are put back, of which every second is the one before it reversed."""


class Occlusion(AttributionMethod):
    """What the answer loses without a word (Zeiler and Fergus 2014; Li et al. 2016)."""

    name = "occlusion"
    described = "leaving one word out (Li et al. 2016)"

    def weights(self, text: ExplainedText) -> Floats:
        """F(x) − F(x without the word)."""
        W = len(text.words)
        found = text.scores(np.vstack([np.ones((1, W), dtype=bool), ~np.eye(W, dtype=bool)]))
        return found[0] - found[1:]


class ShapleySampling(AttributionMethod):
    """What a word adds to those before it, on average over the orders in which words may come
    (Štrumbelj and Kononenko 2010, algorithm 1), each order with its reverse (Mitchell et al. 2022),
    which cancels much of the chance. The weights sum up to F(x) − F(x without words)."""

    name = "shapley"
    described = "Shapley values by sampling (Štrumbelj and Kononenko 2010)"

    def weights(self, text: ExplainedText) -> Floats:
        """The mean over ``PERMUTATIONS`` orders."""
        W = len(text.words)
        total_W = np.zeros(W)
        for number in range(0, PERMUTATIONS, 2):
            order_W = permute(key_of("shapley", number), W, np.arange(W))
            for order in (order_W, order_W[::-1]):
                # Row r has the first r words of the order.
                kept_RW = np.zeros((W + 1, W), dtype=bool)
                for place, word in enumerate(order):
                    kept_RW[place + 1 :, word] = True
                total_W[order] += np.diff(text.scores(kept_RW))
        return total_W / PERMUTATIONS
