"""Windows: documents end to end, cut into rows of one length with nothing wasted.

A split is one stream of tokens: each document behind a start token and before an end token. Rows
of an epoch lie side by side in it, from an offset drawn anew each epoch, in an order drawn anew
each epoch. The stream is a ring, so that every token comes once in every epoch. Row p of the
endless sequence of rows is a pure function of (shards, seed, p), with nothing stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import integers, key_of, permute
from llmctl.data.shards.files import ShardReader


class TokenStream:
    """The documents of a split end to end.

    start, end: the tokens around each document. Where they are the same (GPT-2's) there is one
    between two documents: the start of the next ends the one before.
    """

    def __init__(self, reader: ShardReader, start: int, end: int) -> None:
        self._reader = reader
        self.start, self.end = start, end
        self.has_ends = start != end
        self._stops = np.cumsum(reader.document_lengths + 1 + self.has_ends)
        self.length = int(self._stops[-1]) if len(self._stops) else 0

    def read(self, first: int, ids: NDArray[np.int64], begins: NDArray[np.int64]) -> None:
        """Fill ``ids`` with the tokens from place ``first`` on, around the ring, and ``begins``
        with the index in ``ids`` at which each token's document begins, below 0 if before it."""
        done, place = 0, first % self.length
        document = int(np.searchsorted(self._stops, place, side="right"))
        while done < len(ids):
            stop = int(self._stops[document])
            begin = int(self._stops[document - 1]) if document else 0
            count = min(stop - place, len(ids) - done)
            ids[done : done + count] = self._slice(document, place - begin, count)
            begins[done : done + count] = done - (place - begin)
            done, place = done + count, place + count
            if place == stop:
                document = (document + 1) % len(self._stops)
                place %= self.length

    def sentences(self, first: int, count: int) -> NDArray[np.bool_]:
        """Which of ``count`` tokens from place ``first`` on, around the ring, begin a sentence; the
        tokens around a document are in none."""
        begins = np.zeros(count, dtype=bool)
        done, place = 0, first % self.length
        document = int(np.searchsorted(self._stops, place, side="right"))
        while done < count:
            stop = int(self._stops[document])
            begin = int(self._stops[document - 1]) if document else 0
            starts = np.asarray(self._reader.sentence_starts(document)) + 1 - (place - begin)
            inside = starts[(starts >= 0) & (starts < min(stop - place, count - done))]
            begins[done + inside] = True
            done += min(stop - place, count - done)
            document = (document + 1) % len(self._stops)
            place = stop % self.length
        return begins

    def _slice(self, document: int, first: int, count: int) -> NDArray[np.int64]:
        length = int(self._reader.document_lengths[document])
        ids = np.empty(count, dtype=np.int64)
        body = slice(max(first - 1, 0), min(first + count - 1, length))
        offset = 1 if first == 0 else 0
        if first == 0:
            ids[0] = self.start
        if body.stop > body.start:
            tokens = self._reader.tokens(document, body.start, body.stop)
            ids[offset : offset + len(tokens)] = tokens
        if first + count == length + 2:
            ids[-1] = self.end
        return ids


@dataclass(frozen=True)
class Rows:
    """Consecutive tokens; B rows of T + 1."""

    ids: NDArray[np.int64]
    begins: NDArray[np.int64]
    """The column at which each token's document begins; below 0 if before the row."""
    known: NDArray[np.int64]
    """(B,): how many tokens are there; what follows is not of the split."""
    positions: NDArray[np.int64]
    """(B,): places in the endless sequence of rows, which key what is drawn for them."""


class WindowBatches:
    """Batches of rows of ``sequence_length`` tokens and the one after.

    repeat: endless and shuffled, for training; else one pass in the stream's order, whose last
    row may be short.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        sequence_length: int,
        batch_size: int,
        seed: int,
        repeat: bool,
    ) -> None:
        self.stream = stream
        self._length, self._size = sequence_length, batch_size
        self._seed, self._repeat = seed, repeat
        # Of n tokens one pass predicts n - 1, or all where the start token after the last
        # document is its end.
        self._predicted = stream.length - stream.has_ends
        self.rows_per_epoch = -(-self._predicted // sequence_length)
        self.batches_per_epoch = -(-self.rows_per_epoch // batch_size)

    def batch(self, number: int) -> Rows:
        """The rows of a batch."""
        positions = self._positions(number)
        firsts = self._firsts(positions)
        shape = (len(positions), self._length + 1)
        ids, begins = np.empty(shape, np.int64), np.empty(shape, np.int64)
        for row, first in enumerate(firsts.tolist()):
            self.stream.read(first, ids[row], begins[row])
        known = np.full(len(positions), self._length + 1)
        if not self._repeat:
            known = np.minimum(known, self._predicted + 1 - firsts)
        return Rows(ids, begins, known, positions)

    def sentences(self, number: int) -> NDArray[np.int64]:
        """The rows' sentences: numbers, for each token, which tell those of a row apart."""
        firsts = self._firsts(self._positions(number)).tolist()
        starts = [self.stream.sentences(first, self._length + 1) for first in firsts]
        return np.cumsum(starts, axis=1)

    def _positions(self, number: int) -> NDArray[np.int64]:
        positions = np.arange(number * self._size, (number + 1) * self._size)
        return positions if self._repeat else positions[positions < self.rows_per_epoch]

    def _firsts(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._repeat:
            return positions * self._length
        epochs, numbers = np.divmod(positions, self.rows_per_epoch)
        firsts = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            order = permute(
                key_of(self._seed, "order", epoch), self.rows_per_epoch, numbers[in_epoch]
            )
            offset = integers(key_of(self._seed, "offset"), self._length, epoch)
            firsts[in_epoch] = order * self._length + offset
        return firsts
