"""Sentences of shards, each twice in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import key_of, permute
from llmctl.data.shards.files import ShardReader
from llmctl.tasks.embed.batches import EmbedBatch, EncodedTexts, collate
from llmctl.tokenizers import Layout

FEWEST_PIECES = 6
"""A sentence of fewer pieces is taken with those behind it: a word or two say too little."""


class Sentences:
    """The sentences of a split, by number; those of a document follow one another."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        counts = [len(reader.sentence_starts(document)) for document in range(len(reader))]
        self._ends: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)
        self.count = int(self._ends[-1]) if counts else 0

    def pieces(self, number: int, most: int) -> NDArray[np.int64]:
        """The ids of a sentence, and of those behind it as long as they are few; ``most`` at
        most."""
        document = int(np.searchsorted(self._ends, number, side="right"))
        starts = self.reader.sentence_starts(document)
        first = number - (int(self._ends[document - 1]) if document else 0)
        length = int(self.reader.document_lengths[document])
        begin = int(starts[first])
        further = (int(start) for start in starts[first + 1 :] if start - begin >= FEWEST_PIECES)
        stop = min(next(further, length), begin + most)
        return self.reader.tokens(document, begin, stop).astype(np.int64)


class SimcseBatches:
    """The batches of a split: endless and shuffled for training, else one pass."""

    def __init__(
        self,
        sentences: Sentences,
        layout: Layout,
        *,
        length: int,
        batch_size: int,
        pad: int,
        seed: int,
        training: bool,
    ) -> None:
        """layout: what stands around a text. length: tokens of a text with that, at most."""
        self._sentences, self._layout = sentences, layout
        self._room = length - len(layout.before) - len(layout.after)
        self._size, self._pad = batch_size, pad
        self._seed, self._training = seed, training

    @property
    def per_epoch(self) -> int:
        # What is left over, fewer than a batch, comes in another epoch's order.
        return self._sentences.count // self._size

    def __call__(self, number: int) -> EmbedBatch:
        epoch, place = divmod(number, self.per_epoch)
        numbers = np.arange(place * self._size, (place + 1) * self._size)
        if self._training:
            key = key_of(self._seed, "order", epoch)
            numbers = permute(key, self._sentences.count, numbers)
        return collate([self._twice(one) for one in numbers.tolist()], self._pad)

    def _twice(self, number: int) -> EncodedTexts:
        pieces = self._sentences.pieces(number, self._room)
        ids = np.asarray([*self._layout.before, *pieces, *self._layout.after], dtype=np.int64)
        # The same sentence elsewhere in the batch is none of its negatives.
        key = key_of(*ids.tolist()) >> 1
        return EncodedTexts((ids, ids), (key, key))


def layout_of(tokenizer: Any, *, encoder: bool) -> Layout:
    """What stands around a text that an embedder reads."""
    layout: Layout = (tokenizer.for_encoder() if encoder else tokenizer).layout
    return layout
