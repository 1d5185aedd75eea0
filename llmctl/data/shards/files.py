"""Shards: tokenised documents in Arrow IPC files, memory-mapped, read without a copy.

A row is a document: ``tokens`` (large_list of uint16, or uint32 where the vocabulary needs it)
and ``sentence_starts`` (large_list of int32, token offsets, the first 0). The schema's metadata
names the tokenizer's digest and the format. Memory stays flat: only the documents' lengths, eight
bytes each, are held.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmctl.errors import InputError

FORMAT = "1"

ROWS_TOKENS = 1 << 20
"""Tokens in a record batch: large enough that a file of 64 of them has a small footer."""
SHARD_TOKENS = 1 << 26
"""Tokens in a file: 128 MiB of uint16, convenient to copy and to spread over machines."""

SPLITS = ("train", "validation")


def token_type(vocab_size: int) -> pa.DataType:
    """The narrowest type that holds every id of a vocabulary."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()


def document_fields(vocab_size: int) -> list[pa.Field]:
    """The columns of a document's tokens and of the token offsets of its sentences."""
    return [
        pa.field("tokens", pa.large_list(token_type(vocab_size)), nullable=False),
        pa.field("sentence_starts", pa.large_list(pa.int32()), nullable=False),
    ]


class ShardWriter:
    """Writes the documents of one split, starting a new file at every ``SHARD_TOKENS``.

    The bytes written depend on the documents and their order alone, not on how they came
    grouped into ``add`` calls.
    """

    def __init__(self, folder: Path, split: str, vocab_size: int, tokenizer_digest: str) -> None:
        self._folder, self._split = folder, split
        self._schema = pa.schema(
            document_fields(vocab_size),
            metadata={
                "llmctl.format": FORMAT,
                "llmctl.tokenizer": tokenizer_digest,
                "llmctl.vocab_size": str(vocab_size),
            },
        )
        self._tokens: list[NDArray[Any]] = []
        self._starts: list[NDArray[Any]] = []
        self._pending = 0
        self._in_file = 0
        self._number = 0
        self._writer: Any = None
        self.documents = 0
        self.tokens = 0

    def add(self, tokens: NDArray[Any], sentence_starts: NDArray[Any]) -> None:
        """Append one document."""
        # Copies: a view would keep all of its batch alive until the split has a million tokens,
        # and the validation split has them late.
        self._tokens.append(tokens.copy())
        self._starts.append(sentence_starts.copy())
        self._pending += len(tokens)
        self.documents += 1
        self.tokens += len(tokens)
        if self._pending >= ROWS_TOKENS:
            self._flush()

    def close(self) -> None:
        """Write what is pending; a split without documents has one empty file."""
        if self._tokens or self._number == 0:
            self._flush()
        self._finish_file()

    def abandon(self) -> None:
        """Release the open file after a failure."""
        if self._writer is not None:
            self._sink.close()
            self._writer = None

    def _flush(self) -> None:
        if self._writer is None:
            path = self._folder / f"{self._split}-{self._number:05d}.arrow"
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_file(self._sink, self._schema)
            self._number += 1
        columns = [
            list_array(np.concatenate(parts) if parts else [], [*map(len, parts)], kind)
            for parts, kind in zip((self._tokens, self._starts), self._schema.types, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._in_file += self._pending
        self._tokens, self._starts, self._pending = [], [], 0
        if self._in_file >= SHARD_TOKENS:
            self._finish_file()

    def _finish_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer, self._in_file = None, 0


def list_array(values: Any, counts: Any, kind: pa.DataType) -> pa.Array:
    """Lists of so many values each, which lie one behind another, as a column."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    values = np.asarray(values, kind.value_type.to_pandas_dtype())
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)


class ShardReader:
    """The documents of one split of a shard folder."""

    def __init__(self, folder: Path, split: str, vocab_size: int | None = None) -> None:
        """vocab_size: of the tokenizer that the documents go with; None: as the files say.

        Raises InputError for files that are missing, not ours, or no documents of that vocabulary:
        whoever can write a shard can write its digest too, so what it holds is looked at once.
        """
        files = sorted(folder.glob(f"{split}-*.arrow"))
        if not files:
            raise InputError(f"{folder} has no {split} shards; run `llmctl tokenize` again")
        self._batches = [b for path in files for b in _record_batches(path, vocab_size)]
        lengths = [np.diff(offsets) for _, offsets, _, _ in self._batches]
        self._first = [0, *accumulate(map(len, lengths))]
        self.document_lengths: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *lengths])
        """Tokens in each document."""

    def __len__(self) -> int:
        return len(self.document_lengths)

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """A view of the token ids of a document, or of a part of it."""
        (tokens, offsets, _, _), row = self._locate(document)
        begin, end = offsets[row], offsets[row + 1]
        stop = int(end - begin) if stop is None else min(stop, int(end - begin))
        return tokens[begin + start : begin + stop]

    def token_counts(self, vocab_size: int, most: int = 1 << 22) -> NDArray[np.int64]:
        """How often each token comes, in the first ``most`` tokens of each piece of the shards."""
        counts = np.zeros(vocab_size, np.int64)
        for tokens, *_ in self._batches:
            counts += np.bincount(tokens[:most], minlength=vocab_size)
        return counts

    def sentence_starts(self, document: int) -> NDArray[np.int32]:
        """A view of the token offsets at which the document's sentences start."""
        (_, _, starts, offsets), row = self._locate(document)
        return starts[offsets[row] : offsets[row + 1]]

    def _locate(self, document: int) -> tuple[tuple[NDArray[Any], ...], int]:
        batch = bisect_right(self._first, document) - 1
        return self._batches[batch], document - self._first[batch]


def _record_batches(path: Path, vocab_size: int | None) -> list[tuple[NDArray[Any], ...]]:
    """Token ids, their offsets, sentence starts and their offsets of each record batch, checked."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        schema = reader.schema
        metadata = schema.metadata or {}
        ours = (
            schema.names == ["tokens", "sentence_starts"]
            and schema.types[0] in map(pa.large_list, (pa.uint16(), pa.uint32()))
            and schema.types[1] == pa.large_list(pa.int32())
        )
        if not ours or metadata.get(b"llmctl.format") != FORMAT.encode():
            raise InputError(
                f"{path} is not a shard of format {FORMAT}; make it with `llmctl tokenize`"
            )
        if vocab_size is None:
            vocab_size = int(metadata.get(b"llmctl.vocab_size", b""))
        batches = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            # Offsets that fall or lie outside would be followed into other memory.
            batch.validate(full=True)
            arrays = tuple(
                array.to_numpy(zero_copy_only=True)
                for column in batch.columns
                for array in (column.values, column.offsets)
            )
            if fault := _fault(*arrays, vocab_size=vocab_size):
                raise InputError(f"{path} is damaged: {fault}; make it again")
            batches.append(arrays)
        return batches
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{path} can't be read as Arrow ({error}); make it again") from None


def _fault(
    tokens: NDArray[Any],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int32],
    starts_offsets: NDArray[np.int64],
    *,
    vocab_size: int,
) -> str | None:
    """What is wrong with documents whose offsets rise within their arrays."""
    if len(tokens) and (largest := int(tokens.max())) >= vocab_size:
        return f"it has the token {largest}, and the vocabulary has {vocab_size}"
    lengths, counts = np.diff(offsets), np.diff(starts_offsets)
    if not np.array_equal(counts > 0, lengths > 0):
        return "it has documents without sentences"
    inside = starts[starts_offsets[0] : starts_offsets[-1]]
    firsts = starts_offsets[:-1][counts > 0] - starts_offsets[0]
    rises = np.diff(inside, prepend=0) > 0
    rises[firsts] = inside[firsts] == 0
    if not rises.all() or (inside >= np.repeat(lengths, counts)).any():
        return "its sentences don't lie one behind another in their documents"
    return None
