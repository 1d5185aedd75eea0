"""Sentence pairs for next-sentence prediction (Devlin et al. 2018, §3.1).

A chunk is cut at a random sentence start into A and B; "sentence" is, as in the paper, any span
of contiguous text, so a chunk of one sentence is cut at any token. With probability one half, B
is replaced by text from elsewhere that has the marks of the B that it replaces, so that none of
them gives the answer away:

- it begins at a sentence start if that did, else at any token, and never where a document begins;
- it ends with its document if that did, else at no document's end;
- in the middle of a document it is as long to the token; at an end, where sentences fall as they
  may, it is the longest tail that fits of several documents, a token or two shorter on average.

Elsewhere is another document. Where none of those drawn has such a text, it is the same document
at least a chunk away, then the end of another document whatever its length. Only where there is
neither (one short document), and for a chunk of one token, is the pair always a true one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import uniform
from llmctl.data.shards.chunks import ChunkRefs, Chunks

TRIES = 32
"""Documents looked at, at most, for a text like the one to be replaced."""
CLOSE = 32
"""A tail short of its room by less than this part of it is taken at once."""


@dataclass(frozen=True)
class TextPair:
    """Two spans, and whether the second truly follows the first."""

    first: NDArray[Any]
    second: NDArray[Any]
    is_next: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The B to be replaced: its tokens, and the marks that its replacement should have."""

    document: int
    start: int
    stop: int
    room: int
    at_sentence: bool
    at_end: bool


def draw_pairs(chunks: Chunks, refs: ChunkRefs, key: int) -> list[TextPair]:
    """One pair for each chunk, drawn from ``key`` and the chunk's position in the stream."""
    reader, position = chunks.reader, refs.position
    cut_draw = uniform(key, position, 0).tolist()
    random = uniform(key, position, 1) >= 0.5
    begin_draw = uniform(key, position, 2).tolist()
    at_end = refs.stop == reader.document_lengths[refs.document]
    others = _candidates(chunks, refs, at_end, key).tolist()
    pairs = []
    where = zip(refs.document.tolist(), refs.start.tolist(), refs.stop.tolist(), strict=True)
    for row, (document, start, stop) in enumerate(where):
        starts = reader.sentence_starts(document)
        cut = _draw(starts, [(start + 1, stop)], cut_draw[row], True)
        at_sentence = cut is not None
        if cut is None:
            cut = _draw(starts, [(start + 1, stop)], cut_draw[row], False) or stop
        first, second = reader.tokens(document, start, cut), None
        if random[row] and cut < stop:
            wanted = _Wanted(document, start, stop, stop - cut, at_sentence, bool(at_end[row]))
            second = _elsewhere(chunks, wanted, others[row], begin_draw[row])
        if second is None:
            pairs.append(TextPair(first, reader.tokens(document, cut, stop), True))
        else:
            pairs.append(TextPair(first, second, False))
    return pairs


def _candidates(
    chunks: Chunks, refs: ChunkRefs, at_end: NDArray[np.bool_], key: int
) -> NDArray[np.int64]:
    """(chunks, TRIES): documents to look for another B in.

    A document has one end but many chunks: for an end every other document is as likely, for a
    middle every other chunk.
    """
    draw = uniform(key, refs.position[:, None], 3 + np.arange(TRIES))
    document = refs.document[:, None]
    by_end = (draw * (len(chunks.reader.document_lengths) - 1)).astype(np.int64)
    by_end += by_end >= document
    by_end = np.minimum(by_end, len(chunks.reader.document_lengths) - 1)  # there may be no other
    return np.where(at_end[:, None], by_end, chunks.documents_of_others(document, draw))


def _elsewhere(
    chunks: Chunks, wanted: _Wanted, others: Sequence[int], draw: float
) -> NDArray[Any] | None:
    """Another B, or None if there is no other text at all."""
    reader, room = chunks.reader, wanted.room
    enough = room - room // CLOSE
    best: tuple[int, int, int] | None = None  # tokens, document, first token
    others = [document for document in others if document != wanted.document]
    for document in others:
        length = int(reader.document_lengths[document])
        begin = _begin(reader.sentence_starts(document), length, wanted, draw)
        size = 0 if begin is None else min(room, length - begin)
        if begin is not None and (best is None or size > best[0]):
            best = size, document, begin
            if size >= enough:
                break
    if best is None:
        best = _far_in_same(chunks, wanted, draw) or _last_tokens(chunks, others, room)
    if best is None:
        return None
    size, document, begin = best
    return reader.tokens(document, begin, begin + size)


def _begin(starts: NDArray[Any], length: int, wanted: _Wanted, draw: float) -> int | None:
    """Where a text like the wanted one begins in a document of ``length`` tokens."""
    if not wanted.at_end:
        return _draw(starts, [(1, length - wanted.room)], draw, wanted.at_sentence)
    begin = max(1, length - wanted.room)
    if wanted.at_sentence:
        number = bisect_left(starts, begin)
        begin = int(starts[number]) if number < len(starts) else length
    return begin if begin < length else None


def _far_in_same(chunks: Chunks, wanted: _Wanted, draw: float) -> tuple[int, int, int] | None:
    """Text of the same document, at least a chunk away from the one that is paired."""
    starts = chunks.reader.sentence_starts(wanted.document)
    length = int(chunks.reader.document_lengths[wanted.document])
    before = (1, wanted.start - chunks.max_tokens - wanted.room)
    after = (wanted.stop + chunks.max_tokens, length - wanted.room)
    begin = _draw(starts, [before, after], draw, wanted.at_sentence)
    return None if begin is None else (wanted.room, wanted.document, begin)


def _last_tokens(chunks: Chunks, others: Sequence[int], room: int) -> tuple[int, int, int] | None:
    """The end of the longest document, or of all but its first token."""
    document = max(
        others, key=lambda number: int(chunks.reader.document_lengths[number]), default=0
    )
    length = int(chunks.reader.document_lengths[document]) if others else 0
    size = min(room, max(length - 1, 1))
    return (size, document, length - size) if length else None


def _draw(
    starts: NDArray[Any], ranges: Sequence[tuple[int, int]], draw: float, at_sentence: bool
) -> int | None:
    """One of the tokens in some half-open ranges, or of the sentence starts in them."""
    if at_sentence:
        # By bisection: NumPy's own search would first copy the starts to another type.
        ranges = [(bisect_left(starts, first), bisect_left(starts, end)) for first, end in ranges]
    sizes = [max(0, end - first) for first, end in ranges]
    number = int(draw * sum(sizes))
    for (first, _), size in zip(ranges, sizes, strict=True):
        if number < size:
            return int(starts[first + number]) if at_sentence else first + number
        number -= size
    return None
