"""Sentence pairs for next-sentence prediction (Devlin et al. 2018, §3.1).

A chunk is cut at a random sentence start into A and B; "sentence" is, as in the paper, any span
of contiguous text, so a chunk of one sentence is cut at any token. With probability one half, B
is replaced by text of another document, cut by the same rule and at most as long, so that
neither the cut nor the length tells which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.chunks import ChunkRefs, Chunks
from llmctl.data.keyed import integers, uniform

TRIES = 8
"""Draws for text of another document that is long enough; a corpus of one document has none."""


@dataclass(frozen=True)
class TextPair:
    """Two spans, and whether the second truly follows the first."""

    first: NDArray[Any]
    second: NDArray[Any]
    is_next: bool


def draw_pairs(chunks: Chunks, refs: ChunkRefs, key: int) -> list[TextPair]:
    """One pair for each chunk, drawn from ``key`` and the chunk's position in the stream."""
    position = refs.position
    cut_draw = uniform(key, position, 0)
    is_next = uniform(key, position, 1) < 0.5
    others = [
        chunks.by_number(integers(key, chunks.count, position, 2 + attempt))
        for attempt in range(TRIES)
    ]
    pairs = []
    for row in range(len(refs)):
        document, start, stop = (
            int(refs.document[row]),
            int(refs.start[row]),
            int(refs.stop[row]),
        )
        cut = _cut(chunks, document, start, stop, float(cut_draw[row]))
        first = chunks.reader.tokens(document, start, cut)
        second = None
        if not is_next[row]:
            draw, room = float(cut_draw[row]), stop - cut
            # A chunk of one token has no second part to replace.
            second = _elsewhere(chunks, others, row, document, draw, room) if room else None
            is_next[row] = second is None
        if is_next[row] or second is None:
            second = chunks.reader.tokens(document, cut, stop)
        pairs.append(TextPair(first, second, bool(is_next[row])))
    return pairs


def _elsewhere(
    chunks: Chunks, others: list[ChunkRefs], row: int, document: int, draw: float, room: int
) -> NDArray[Any] | None:
    """``room`` tokens from a cut in another document; the longest found, if all are shorter."""
    best: NDArray[Any] | None = None
    for other in others:
        candidate = int(other.document[row])
        if candidate == document:
            continue
        begin = _cut(chunks, candidate, int(other.start[row]), int(other.stop[row]), draw)
        tokens = chunks.reader.tokens(candidate, begin, begin + room)
        if len(tokens) and (best is None or len(tokens) > len(best)):
            best = tokens
        if best is not None and len(best) == room:
            break
    return best


def _cut(chunks: Chunks, document: int, start: int, stop: int, draw: float) -> int:
    """Where B begins: a sentence start inside the chunk, or any token if there is none."""
    starts = chunks.reader.sentence_starts(document)
    low = int(np.searchsorted(starts, start, side="right"))
    high = int(np.searchsorted(starts, stop, side="left"))
    if high > low:
        return int(starts[low + int(draw * (high - low))])
    return start + max(1, int(draw * (stop - start)))
