"""Documents as ids, with what places them in their corpus: in a stream, or in a file between the
process that encodes a part of a corpus and the one that puts the parts together.

The file is Arrow IPC, a row a document, with what is counted of each: which documents stay is
known only where all parts are, so nothing can be added up before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmctl.data.shards.encoding import EncodedBatch
from llmctl.data.shards.files import document_fields, list_array
from llmctl.errors import InputError


@dataclass(frozen=True)
class EncodedDocuments:
    """Some documents, each with its place in the order by which the corpus is split."""

    encoded: EncodedBatch
    split_keys: NDArray[np.uint64]
    characters: NDArray[np.int64]
    """Characters of each document."""
    text_bytes: NDArray[np.int64]
    """Bytes of each document in UTF-8."""
    position: int
    """How much of the whole was read once these are."""

    def select(self, kept: NDArray[np.bool_]) -> EncodedDocuments:
        """Those documents for which ``kept`` is true."""
        if kept.all():
            return self
        all_documents = self.encoded
        encoded = EncodedBatch(
            tokens=all_documents.tokens[np.repeat(kept, all_documents.token_counts)],
            token_counts=all_documents.token_counts[kept],
            starts=all_documents.starts[np.repeat(kept, all_documents.start_counts)],
            start_counts=all_documents.start_counts[kept],
            word_counts=all_documents.word_counts[kept],
            unknown_counts=all_documents.unknown_counts[kept],
        )
        return EncodedDocuments(
            encoded,
            self.split_keys[kept],
            self.characters[kept],
            self.text_bytes[kept],
            self.position,
        )


COUNT_COLUMNS = ("characters", "text_bytes", "words", "unknown")


class PartWriter:
    """Writes a stream of batches to a file; one in memory at a time."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._schema = pa.schema(
            [
                *document_fields(vocab_size),
                pa.field("place", pa.uint64(), nullable=False),
                *(pa.field(name, pa.int64(), nullable=False) for name in COUNT_COLUMNS),
            ]
        )
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def add(self, batch: EncodedDocuments) -> None:
        encoded = batch.encoded
        columns = [
            list_array(encoded.tokens, encoded.token_counts, self._schema.field(0).type),
            list_array(encoded.starts, encoded.start_counts, self._schema.field(1).type),
            pa.array(batch.split_keys),
            pa.array(batch.characters),
            pa.array(batch.text_bytes),
            pa.array(encoded.word_counts),
            pa.array(encoded.unknown_counts),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
        self._sink.close()

    def abandon(self) -> None:
        """Release the file after a failure."""
        self._sink.close()


def read_part(path: Path) -> Iterator[EncodedDocuments]:
    """The batches of a file, as views of it; ``position`` counts the tokens.

    The file is trusted: compare its digest first. Raises InputError if it can't be read.
    """
    position = 0
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                tokens, starts, *rest = reader.get_batch(number).columns
                places, characters, text_bytes, words, unknown = (
                    column.to_numpy(zero_copy_only=True) for column in rest
                )
                encoded = EncodedBatch(
                    tokens=tokens.values.to_numpy(zero_copy_only=True),
                    token_counts=np.diff(tokens.offsets.to_numpy(zero_copy_only=True)),
                    starts=starts.values.to_numpy(zero_copy_only=True),
                    start_counts=np.diff(starts.offsets.to_numpy(zero_copy_only=True)),
                    word_counts=words,
                    unknown_counts=unknown,
                )
                position += len(encoded.tokens)
                yield EncodedDocuments(encoded, places, characters, text_bytes, position)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} can't be read ({error}); make the part again") from None
