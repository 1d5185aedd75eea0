"""Exact duplicates: a set of 64-bit text hashes in eight bytes each.

Hashes are kept in sorted arrays whose sizes double (a log-structured merge), so a batch is looked
up by binary search and memory stays small: 80 MB for ten million documents. Two different texts
share a hash with probability n²/2⁶⁵, 3 · 10⁻⁶ at ten million.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b of a text: decides its split and tells duplicates."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(text: str, share: float) -> bool:
    """Whether a text falls to such a share of all, by its hash: whatever the order."""
    return text_hash(text) < round(share * 2**64)


class SeenHashes:
    """Tells which hashes come for the first time."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Add a batch; True where a hash is new, at its first place in the batch."""
        unique, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(unique), dtype=bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            known |= run[place] == unique
        new = np.zeros(len(hashes), dtype=bool)
        new[first[~known]] = True
        self._push(unique[~known])
        return new

    def _push(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort()
        if len(run):
            self._runs.append(run)
