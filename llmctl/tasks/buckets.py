"""The order of an epoch where examples are padded: at random, and neighbours of like length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import bits, key_of, permute

BUCKET_BATCHES = 16
"""Batches sorted by length together: little padding, and neighbours still at random."""


def bucketed(
    lengths: Sequence[int] | NDArray[np.int64], size: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """The numbers of the examples in each batch of an epoch, a pure function of seed and epoch."""
    lengths_N = np.asarray(lengths)
    order_N = permute(key_of(seed, "order", epoch), len(lengths_N), np.arange(len(lengths_N)))
    batches = []
    for start in range(0, len(order_N), BUCKET_BATCHES * size):
        window = order_N[start : start + BUCKET_BATCHES * size]
        window = window[np.argsort(lengths_N[window], kind="stable")]
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    shuffled = np.argsort(bits(key_of(seed, "deal", epoch), np.arange(len(batches))))
    return [batches[i] for i in shuffled]
