"""Chunks: pieces of documents short enough for the model, in an order drawn anew each epoch.

Position p of the endless stream of chunks is chunk ``permutation(epoch)[p mod n]`` of epoch
``p div n``: a pure function of (shards, seed, p), with nothing stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.keyed import key_of, permute
from llmctl.data.shards import ShardReader


@dataclass(frozen=True)
class ChunkRefs:
    """Where some chunks lie, one entry each."""

    position: NDArray[np.int64]
    """Place in the stream: names the epoch and the chunk, so it keys what is drawn for them."""
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.position)

    def take(self, rows: NDArray[np.int64]) -> ChunkRefs:
        """The entries at some places."""
        return ChunkRefs(
            self.position[rows], self.document[rows], self.start[rows], self.stop[rows]
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.stop - self.start


class Chunks:
    """Every document cut into pieces of ``max_tokens``; the last of a document is the rest."""

    def __init__(self, reader: ShardReader, max_tokens: int, *, seed: int, shuffle: bool) -> None:
        self.reader, self.max_tokens = reader, max_tokens
        self._seed, self._shuffle = seed, shuffle
        counts = -(-reader.document_lengths // max_tokens)
        self._ends = np.cumsum(counts)
        self.count = int(self._ends[-1]) if len(counts) else 0
        self.total_tokens = int(reader.document_lengths.sum())

    def at(self, positions: NDArray[np.int64]) -> ChunkRefs:
        """The chunks at some positions of the stream."""
        epochs, numbers = np.divmod(positions, self.count)
        if self._shuffle:
            shuffled = np.empty_like(numbers)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                key = key_of(self._seed, "order", int(epoch))
                shuffled[here] = permute(key, self.count, numbers[here])
            numbers = shuffled
        return self._locate(positions, numbers)

    def by_number(self, numbers: NDArray[np.int64]) -> ChunkRefs:
        """Chunks by their number in corpus order."""
        return self._locate(numbers, numbers)

    def _locate(self, positions: NDArray[np.int64], numbers: NDArray[np.int64]) -> ChunkRefs:
        document = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(document > 0, self._ends[np.maximum(document - 1, 0)], 0)
        start = (numbers - before) * self.max_tokens
        stop = np.minimum(start + self.max_tokens, self.reader.document_lengths[document])
        return ChunkRefs(positions, document, start, stop)
