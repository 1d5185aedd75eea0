"""Counter-based randomness: numbers and permutations as pure functions of a key and a position.

There is no state to save, so the batch at step N can be made without making those before it,
by any process. Numbers come from SplitMix64's finaliser (Steele, Lea and Flood 2014) applied in
rounds over the key and the counters; a permutation of any size is a Feistel network over the next
power of four, walked until it lands inside (Black and Rogaway 2002, "cycle walking").
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

FEISTEL_ROUNDS = 6
"""Four give a pseudorandom permutation in theory (Luby and Rackoff 1988); two more for small n."""


def key_of(*parts: int | str) -> int:
    """A 64-bit key from a seed and the names of what it is used for."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(key: int, *counters: NDArray[np.generic] | int) -> U64:
    """64 random bits for each tuple of counters (arrays broadcast against each other)."""
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(key, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        for counter in counters:
            value = np.asarray(counter).astype(np.uint64)
            state = _mix(state ^ _mix(value + np.uint64(0x9E3779B97F4A7C15)))
    return state


def uniform(key: int, *counters: NDArray[np.generic] | int) -> NDArray[np.float64]:
    """Numbers in [0, 1), 53 bits each, for each tuple of counters."""
    return (bits(key, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(
    key: int, below: NDArray[np.int64] | int, *counters: NDArray[np.generic] | int
) -> NDArray[np.int64]:
    """Whole numbers in [0, below) for each tuple of counters; bias under 2⁻⁵³ · below."""
    return (uniform(key, *counters) * below).astype(np.int64)


def permute(key: int, size: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where a keyed permutation of range(size) sends the given positions."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)

    def network(x: U64) -> U64:
        left, right = x >> shift, x & low
        for number in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (bits(key, number, right) & low)
        return (left << shift) | right

    result = network(positions.astype(np.uint64))
    outside = result >= size
    while outside.any():
        result[outside] = network(result[outside])
        outside = result >= size
    return result.astype(np.int64)
