"""Chunks: pieces of documents short enough for the model, in an order drawn anew each epoch.

Position p of the endless stream of chunks is chunk ``permutation(epoch)[p mod n]`` of epoch
``p div n``: a pure function of (shards, seed, p), with nothing stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import key_of, permute
from llmctl.data.shards.files import ShardReader

LEAST_REST = 1 / 8


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
    """Every document cut into pieces of ``max_tokens``. The last is the rest; one shorter than
    ``LEAST_REST`` of that, a poor text to learn from, is filled up from the piece before it.

    Pieces of equal length would be no shorter than half a row and fit badly together: on
    documents of 1 to 300 tokens in rows of 128 they leave 22 % padding, these under 6 %.
    """

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
                in_epoch = epochs == epoch
                key = key_of(self._seed, "order", int(epoch))
                shuffled[in_epoch] = permute(key, self.count, numbers[in_epoch])
            numbers = shuffled
        document = np.searchsorted(self._ends, numbers, side="right")
        first, count = self._range(document)
        length = self.reader.document_lengths[document]
        piece, last_start = numbers - first, length - int(LEAST_REST * self.max_tokens)
        start = np.where(piece > 0, np.minimum(piece * self.max_tokens, last_start), 0)
        stop = np.where(
            piece < count - 1, np.minimum((piece + 1) * self.max_tokens, last_start), length
        )
        return ChunkRefs(positions, document, start, stop)

    def documents_of_others(
        self, document: NDArray[np.int64], draw: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """For each draw in [0, 1) the document of a chunk of any document but the given one;
        the given one where it has all the chunks."""
        first, own = self._range(document)
        number = (draw * (self.count - own)).astype(np.int64)
        number += np.where(number >= first, own, 0)
        return np.where(
            own == self.count, document, np.searchsorted(self._ends, number, side="right")
        )

    def _range(self, document: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of a document's first chunk, and how many it has."""
        first = np.where(document > 0, self._ends[np.maximum(document - 1, 0)], 0)
        return first, self._ends[document] - first
