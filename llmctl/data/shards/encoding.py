"""Documents to token ids, in as many processes as there are, in the order they came.

What is made of a document depends on its text alone, and batches come back in order, so the
result is the same for any number of workers. A bounded number of batches is under way at a time,
so memory is flat.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.text.sentences import each_start
from llmctl.errors import ResourceError
from llmctl.tokenizers import Tokenizer, count_words, load
from llmctl.workspace.files import errors_naming

BATCH_CHARACTERS = 1 << 18
"""Text in a unit of work: enough to hide the cost of handing it over."""
TOGETHER = 1 << 20
"""Characters of sentences encoded in one call: more than a batch, unless a document is long."""
IN_FLIGHT = 2
"""Batches under way for each worker: one being worked on, one waiting."""


@dataclass(frozen=True)
class EncodedBatch:
    """Some documents as ids. ``tokens`` and ``starts`` are concatenated over the documents."""

    tokens: NDArray[Any]
    token_counts: NDArray[np.int64]
    """Tokens of each document."""
    starts: NDArray[np.int32]
    """Token offsets in their document at which sentences start."""
    start_counts: NDArray[np.int64]
    """Sentences of each document."""
    word_counts: NDArray[np.int64]
    """Words of each document."""
    unknown_counts: NDArray[np.int64]
    """Tokens of each document that stand for what is in no piece."""

    @property
    def words(self) -> int:
        return int(self.word_counts.sum())

    @property
    def unknown(self) -> int:
        return int(self.unknown_counts.sum())

    def documents(self) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
        """(tokens, sentence starts) of each document."""
        tokens = np.split(self.tokens, np.cumsum(self.token_counts)[:-1])
        starts = np.split(self.starts, np.cumsum(self.start_counts)[:-1])
        return zip(tokens, starts, strict=True)


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> EncodedBatch:
    """Encode documents: the ids of each whole text, and where its sentences start in them."""
    make = _by_sentences if tokenizer.sentencewise else _by_offsets
    ids, token_counts, starts, start_counts = make(tokenizer, texts)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    unknown, ends = tokenizer.special.get("unk", -1), np.cumsum(token_counts)
    return EncodedBatch(
        tokens=ids.astype(dtype),
        token_counts=token_counts,
        starts=starts.astype(np.int32),
        start_counts=start_counts,
        word_counts=np.array([count_words(text) for text in texts], dtype=np.int64),
        unknown_counts=np.array(
            [np.count_nonzero(part == unknown) for part in np.split(ids, ends[:-1])], np.int64
        ),
    )


def encode_text(tokenizer: Tokenizer, text: str) -> NDArray[np.uint32]:
    """The ids of a text of any length."""
    return np.concatenate(
        [tokenizer.encode_batch([text[a:b]])[0] for a, b in tokenizer.stretches(text)]
    )


_Encoded = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Tokens, their number in each document, sentence starts, and their number."""


def _by_sentences(tokenizer: Tokenizer, texts: Sequence[str]) -> _Encoded:
    """Sentences one by one, a very long one in parts; so many at a time."""
    ids: list[NDArray[np.uint32]] = []
    part_lengths: list[NDArray[np.int64]] = []
    counts = []
    parts: list[str] = []
    done = size = 0
    first_part = array("q")
    """The first part of each sentence."""

    def encode() -> None:
        if parts:
            of_parts, lengths = tokenizer.encode_batch(parts)
            ids.append(of_parts)
            part_lengths.append(lengths)
            parts.clear()

    for text in texts:
        cuts = _cuts(text)
        counts.append(len(cuts))
        cuts.append(len(text))
        for begin, end in pairwise(cuts):
            first_part.append(done)
            for a, b in tokenizer.stretches(text[begin:end]):
                parts.append(text[begin + a : begin + b])
                done += 1
                size += b - a
                if size >= TOGETHER:
                    encode()
                    size = 0
    encode()
    sentence_lengths = np.add.reduceat(np.concatenate(part_lengths), first_part)
    first_sentence = np.concatenate([[0], np.cumsum(counts)])
    ends = np.concatenate([[0], np.cumsum(sentence_lengths)])
    document_of = np.repeat(np.arange(len(texts)), counts)
    starts = ends[:-1] - ends[first_sentence[document_of]]
    # A sentence without tokens (control characters alone) is none.
    kept = sentence_lengths > 0
    start_counts = np.bincount(document_of[kept], minlength=len(texts))
    return np.concatenate(ids), np.diff(ends[first_sentence]), starts[kept], start_counts


def _by_offsets(tokenizer: Tokenizer, texts: Sequence[str]) -> _Encoded:
    ids: list[NDArray[np.uint32]] = []
    token_counts, starts = [], []
    for text in texts:
        cuts = np.asarray(_cuts(text))
        done = 0
        firsts = []
        for begin, end in tokenizer.stretches(text):
            of_part, begins = tokenizer.encode_offsets(text[begin:end])
            ids.append(of_part)
            within = cuts[np.searchsorted(cuts, begin) : np.searchsorted(cuts, end)]
            firsts.append(done + np.searchsorted(begins, within - begin))
            done += len(of_part)
        first = np.concatenate(firsts)
        if len(first):
            first[0] = 0
        token_counts.append(done)
        # A sentence without tokens has the start of the next.
        starts.append(np.unique(first[first < done]))
    return (
        np.concatenate(ids),
        np.array(token_counts),
        np.concatenate(starts),
        np.array([len(part) for part in starts]),
    )


def _cuts(text: str) -> array[int]:
    """Where sentences start, each with the spaces before it: byte-level pieces begin with one."""
    starts = array("q", each_start(text))
    for number in range(1, len(starts)):
        place = starts[number]
        while place and text[place - 1].isspace():
            place -= 1
        starts[number] = place
    return starts


def encode_in_order(
    batches: Iterable[Sequence[str]], folder: Path, workers: int
) -> Iterator[EncodedBatch]:
    """Encode batches with the tokenizer of a folder, in ``workers`` processes, in their order.

    Raises ResourceError if a worker is killed.
    """
    if workers <= 1:
        tokenizer = load(folder)
        for batch in batches:
            yield encode_documents(tokenizer, batch)
        return
    # Spawned, not forked: a fork of a process with threads can lock up.
    context = multiprocessing.get_context("spawn")
    with errors_naming(Path("/dev/shm")):
        executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(folder,)
        )
    with _one_thread_each(), executor as pool:
        under_way: deque[Future[EncodedBatch]] = deque()
        try:
            for batch in batches:
                with _spared_of_interrupts(), errors_naming(Path("/dev/shm")):
                    under_way.append(pool.submit(_work, list(batch)))
                if len(under_way) >= IN_FLIGHT * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise ResourceError(
                "a worker process was killed, most likely for memory; use fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers share the cores among them: none starts threads of its own."""
    before = os.environ.get("RAYON_NUM_THREADS")
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAYON_NUM_THREADS"]
        else:
            os.environ["RAYON_NUM_THREADS"] = before


@contextmanager
def _spared_of_interrupts() -> Iterator[None]:
    """What is started here never sees a Ctrl-C, which reaches the whole group: it would end a
    worker in the middle of its imports, with a traceback. Here it comes at the end of the block."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker_tokenizer: Tokenizer


def _end_with_parent() -> None:
    """A parent that is killed can't end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _start_worker(folder: Path) -> None:
    # Ctrl-C reaches the whole group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _worker_tokenizer
    _worker_tokenizer = load(folder)


def _work(texts: list[str]) -> EncodedBatch:
    return encode_documents(_worker_tokenizer, texts)
