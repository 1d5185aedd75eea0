"""Packing: texts of different lengths laid end to end in rows, so that little is padding.

A window of consecutive chunks is packed by best fit, longest first (Johnson 1974), and its rows
are dealt out evenly to the window's batches. As the window depends on its number alone, batch N
is a pure function of N.
"""

from __future__ import annotations

import bisect
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import bits, key_of
from llmctl.data.shards.chunks import ChunkRefs, Chunks

PACKING_WINDOW_BATCHES = 16
"""Batches packed together: enough texts for a good fit, few enough to pack in milliseconds."""


def pack(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to at most ``capacity``: best fit, longest first.

    >>> pack(np.array([3, 5, 2, 4, 1]), 6)
    [[1, 4], [3, 2], [0]]
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if length > capacity:
            raise ValueError(f"a text of {length} tokens does not fit a row of {capacity}")
        place = bisect.bisect_left(open_rows, (length, -1))
        if place == len(open_rows):
            rows.append([index])
            room, row = capacity - length, len(rows) - 1
        else:
            room, row = open_rows.pop(place)
            rows[row].append(index)
            room -= length
        if room > 0:
            bisect.insort(open_rows, (room, row))
    return rows


def deal(
    lengths: NDArray[np.int64], capacity: int, batches: int, key: int
) -> list[list[list[int]]]:
    """The packed rows of some batches, about as many for each and one at least.

    lengths: of as many texts as there are batches, or more. key: of the order of the rows.
    """
    rows = pack(lengths, capacity)
    while len(rows) < batches:  # texts shorter than most: a batch would get no row
        fullest = max(rows, key=len)
        half = len(fullest) // 2
        rows.append(fullest[half:])
        del fullest[half:]
    # Longest-first packing leaves like rows together: shuffle before dealing them out.
    order = np.argsort(bits(key, np.arange(len(rows))))
    dealt = [part.tolist() for part in np.array_split(order, batches)]
    return [[rows[row] for row in part] for part in dealt]


class PackedBatches:
    """Batches of packed rows over a stream of chunks.

    sequence_length: tokens in a row. overhead: special tokens that each text gets.
    batch_size: rows in a batch on average; a batch has one more or less where packing needs it.
    repeat: go on into the next epoch for ever, or stop after one pass.
    """

    def __init__(
        self,
        chunks: Chunks,
        *,
        sequence_length: int,
        batch_size: int,
        overhead: int,
        seed: int,
        repeat: bool = True,
    ) -> None:
        self.chunks = chunks
        self.sequence_length = sequence_length
        self._overhead, self._seed, self._repeat = overhead, seed, repeat
        mean_length = chunks.total_tokens / max(chunks.count, 1) + overhead
        self.chunks_per_batch = max(1, round(batch_size * sequence_length / mean_length))
        self.batches_per_epoch = max(1, -(-chunks.count // self.chunks_per_batch))
        # Batches of one window are asked for one after another.
        self._window = lru_cache(maxsize=2)(self._make_window)

    def batch(self, number: int) -> tuple[ChunkRefs, list[list[int]]]:
        """The chunks of a batch and, for each row, which of them it holds in order."""
        window, place = divmod(number, PACKING_WINDOW_BATCHES)
        refs, deals = self._window(window)
        rows = deals[place]
        flat = np.asarray([index for row in rows for index in row], dtype=np.int64)
        ends = np.cumsum([len(row) for row in rows]).tolist()
        local = [list(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
        return refs.take(flat), local

    def _make_window(self, window: int) -> tuple[ChunkRefs, list[list[list[int]]]]:
        span = PACKING_WINDOW_BATCHES * self.chunks_per_batch
        first, last = window * span, (window + 1) * span
        batches = PACKING_WINDOW_BATCHES
        if not self._repeat:
            last = min(last, self.chunks.count)
            batches = -(-(last - first) // self.chunks_per_batch)
        refs = self.chunks.at(np.arange(first, last))
        lengths = refs.lengths + self._overhead
        key = key_of(self._seed, "deal", window)
        return refs, deal(lengths, self.sequence_length, batches, key)
