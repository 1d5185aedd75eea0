"""From documents to shards: which split each falls to, and what is counted on the way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl.data.shards.encoding import BATCH_CHARACTERS, encode_in_order
from llmctl.data.shards.files import SPLITS, ShardWriter
from llmctl.data.shards.part_files import EncodedDocuments
from llmctl.data.text.documents import Corpus, Document
from llmctl.data.text.hashing import SeenHashes, text_hash
from llmctl.errors import InputError
from llmctl.reporting.reporter import Reporter
from llmctl.tokenizers.base import Tokenizer
from llmctl.training.machine import cores

MIN_BYTES_FOR_WORKERS = 4 << 20
"""Bytes; a smaller corpus is done before worker processes have started."""


@dataclass(frozen=True)
class TokenizerSummary:
    """What shards say of their tokenizer."""

    size: int
    kind: str
    digest: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenizerSummary:
        return cls(tokenizer.vocab_size, tokenizer.kind, tokenizer.digest())


Placed = tuple[list[str], NDArray[np.uint64], int]
"""Texts, their places in the order by which the corpus is split, and the bytes of the corpus read
once their documents are."""


class ByHash:
    """Documents in the order of their hashes, each text once; ``limit`` is the share's."""

    def __init__(self, documents: Iterable[Document], share: float) -> None:
        self._documents = documents
        self.limit = round(share * 2**64)
        self.duplicates = 0

    def batches(self) -> Iterator[Placed]:
        seen = SeenHashes()
        self.duplicates = 0
        pieces = ((document.text, document.position) for document in self._documents)
        for texts, position in _grouped(pieces):
            hashes = np.array([text_hash(text) for text in texts], dtype=np.uint64)
            new = seen.add(hashes)
            self.duplicates += len(texts) - int(np.count_nonzero(new))
            yield list(compress(texts, new)), hashes[new], position


class ByTail:
    """Documents by how much of the corpus is left where they begin; the one in which the share
    begins is cut in two there, so that the first part is text[: int(n * (1 - share))]."""

    duplicates = 0

    def __init__(
        self, documents: Iterable[Document], share: float, characters: int, before: int = 0
    ) -> None:
        """characters: of the whole corpus. before: those before the first of the documents."""
        self._documents = documents
        self._characters, self._before = characters, before
        self._cut = int(characters * (1 - share))
        self.limit = characters - self._cut + 1

    def batches(self) -> Iterator[Placed]:
        left = self._characters - self._before
        for texts, position in _grouped(self._pieces()):
            ends = np.cumsum([0, *map(len, texts)])
            yield texts, (left - ends[:-1]).astype(np.uint64), position
            left -= int(ends[-1])

    def _pieces(self) -> Iterator[tuple[str, int]]:
        begin = self._before
        for document in self._documents:
            cut = self._cut - begin
            begin += len(document.text)
            if 0 < cut < len(document.text):
                yield document.text[:cut], document.position
                yield document.text[cut:], document.position
            else:
                yield document.text, document.position


def count_characters(corpus: Corpus, parts: int, reporter: Reporter) -> list[int]:
    """Characters in each of so many parts of a corpus."""
    counts = [0] * parts
    for document in corpus:
        counts[corpus.part_of(document, parts) - 1] += len(document.text)
        reporter.progress("counting characters", document.position, corpus.total_bytes)
    return counts


class DocumentSource(Protocol):
    """Encoded documents in their order, each text once if that is asked for."""

    limit: int
    """Documents with a lower place are for validation."""
    task: str
    """What progress is called."""
    total: int
    """The position at the end of progress."""

    @property
    def duplicates(self) -> int:
        """Documents left out; known once the batches are through."""

    def batches(self) -> Iterator[EncodedDocuments]: ...


class FromText:
    """Documents encoded as they are read."""

    task = "tokenizing"

    def __init__(self, order: ByHash | ByTail, tokenizer: Path, workers: int, total: int) -> None:
        """workers: 0 for one process a core where that is worth it."""
        self._order, self._tokenizer = order, tokenizer
        self._workers = workers or (cores() if total >= MIN_BYTES_FOR_WORKERS else 1)
        self.limit, self.total = order.limit, total

    @property
    def duplicates(self) -> int:
        return self._order.duplicates

    def batches(self) -> Iterator[EncodedDocuments]:
        # What was sent to be encoded, in order, without the texts.
        sent: deque[tuple[Any, Any, Any, int]] = deque()

        def texts() -> Iterator[list[str]]:
            for texts, places, position in self._order.batches():
                if texts:
                    characters = np.array([*map(len, texts)], dtype=np.int64)
                    text_bytes = np.array([len(text.encode()) for text in texts], np.int64)
                    sent.append((places, characters, text_bytes, position))
                    yield texts

        for encoded in encode_in_order(texts(), self._tokenizer, self._workers):
            yield EncodedDocuments(encoded, *sent.popleft())


def write_shards(
    source: DocumentSource,
    target: Path,
    vocabulary: TokenizerSummary,
    share: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write both splits. In a corpus so small that one of them is empty, the document with the
    lowest place goes to validation or the one with the highest to train."""
    summary, lowest, highest = _one_pass(source, target, vocabulary, source.limit, reporter)
    documents, held_out = summary["documents"], summary["validation_documents"]
    if not documents:
        raise InputError("the corpus has no tokens: its text is control characters alone")
    if held_out == documents:
        limit = highest
    elif share and not held_out and documents > 1:
        limit = lowest + 1
    else:
        return summary
    for path in target.glob("*.arrow"):
        path.unlink()
    return _one_pass(source, target, vocabulary, limit, reporter)[0]


def note_split(summary: dict[str, Any], share: float, reporter: Reporter) -> None:
    """Tell of a split by documents that says little: validation on a single one, or on none."""
    documents, held_out = summary["documents"], summary["validation_documents"]
    if share and held_out < 2:
        number = "no document" if not held_out else f"1 of {documents:,} documents"
        reporter.note(
            f"{number} is held out to validate on, so a validation loss will say little: give more "
            "text, smaller documents (--document paragraph or line), or --split tail"
        )


def _one_pass(
    source: DocumentSource,
    target: Path,
    vocabulary: TokenizerSummary,
    limit: int,
    reporter: Reporter,
) -> tuple[dict[str, Any], int, int]:
    """Write the documents whose place is below ``limit`` to validation, the others to train.

    Returns a summary, and the lowest and the highest place of a document that has tokens.
    """
    started = time.perf_counter()
    characters = text_bytes = words = unknown = 0
    lowest, highest = 2**64, -1
    with ExitStack() as cleanup:
        writers = {}
        for split in SPLITS:
            writer = ShardWriter(target, split, vocabulary.size, vocabulary.digest)
            cleanup.callback(writer.abandon)
            writers[split] = writer
        for batch in source.batches():
            places = batch.split_keys.tolist()
            for (ids, starts), place in zip(batch.encoded.documents(), places, strict=True):
                if len(ids):
                    writers["validation" if place < limit else "train"].add(ids, starts)
                    lowest, highest = min(lowest, place), max(highest, place)
            characters += int(batch.characters.sum())
            text_bytes += int(batch.text_bytes.sum())
            words += batch.encoded.words
            unknown += batch.encoded.unknown
            seconds = time.perf_counter() - started
            reporter.progress(
                source.task, batch.position, source.total, f"{text_bytes / 1e6 / seconds:.1f} MB/s"
            )
        for writer in writers.values():
            writer.close()
    seconds = time.perf_counter() - started
    tokens = sum(writer.tokens for writer in writers.values())
    summary = {
        "documents": sum(writer.documents for writer in writers.values()),
        "tokens": tokens,
        "train_documents": writers["train"].documents,
        "train_tokens": writers["train"].tokens,
        "validation_documents": writers["validation"].documents,
        "validation_tokens": writers["validation"].tokens,
        "duplicates": source.duplicates,
        "characters": characters,
        "tokens_per_word": tokens / max(words, 1),
        "unknown_share": unknown / max(tokens, 1),
        "vocab_size": vocabulary.size,
        "tokenizer": vocabulary.kind,
        "tokenizer_digest": vocabulary.digest,
        "seconds": round(seconds, 3),
        "megabytes_per_second": text_bytes / 1e6 / seconds,
    }
    return summary, lowest, highest


def _grouped(pieces: Iterable[tuple[str, int]]) -> Iterator[tuple[list[str], int]]:
    """Texts in batches of work, each with the position of its last."""
    texts: list[str] = []
    size = position = 0
    for text, position in pieces:
        texts.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield texts, position
            texts, size = [], 0
    if texts:
        yield texts, position
