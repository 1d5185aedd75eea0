"""The text that a model is calibrated on, as rows of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmctl.data.shards.encoding import encode_text
from llmctl.data.shards.files import ShardReader
from llmctl.data.shards.windows import TokenStream
from llmctl.data.text.documents import Corpus
from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer

TIMES_READ = 16
"""Times as many tokens of a file are read as are taken, evenly from among them."""


def windows_of_shards(
    folder: Path, tokenizer: Tokenizer, count: int, length: int, *, split: str = "train"
) -> Tensor:
    """Rows (N, T) evenly from a part of shards."""
    reader = ShardReader(folder, split, tokenizer.vocab_size)
    stream = TokenStream(reader, *_around(tokenizer))
    _check_length(stream.length, length, str(folder))
    count = min(count, stream.length // length)
    rows_NT = np.empty((count, length), dtype=np.int64)
    begins = np.empty(length, dtype=np.int64)
    for row in range(count):
        stream.read(row * (stream.length // count), rows_NT[row], begins)
    return torch.from_numpy(rows_NT)


def windows_of_file(corpus: Corpus, tokenizer: Tokenizer, count: int, length: int) -> Tensor:
    """Rows (N, T) evenly from a text's beginning, its documents end to end."""
    start, end = _around(tokenizer)
    parts: list[np.ndarray] = []
    total = 0
    for document in corpus:
        ids = encode_text(tokenizer, document.text).astype(np.int64)
        parts += [np.array([start]), ids, np.array([end])]
        total += len(ids) + 2
        if total >= TIMES_READ * count * length:
            break
    _check_length(total, length, corpus.names[0])
    stream = torch.from_numpy(np.concatenate(parts))
    rows = len(stream) // length
    chosen = torch.linspace(0, rows - 1, min(count, rows)).round().long()
    return stream[: rows * length].view(rows, length)[chosen]


def _around(tokenizer: Tokenizer) -> tuple[int, int]:
    around = tokenizer.boundaries
    if around is None:
        raise InputError(
            "the tokenizer has no tokens for a text's start and end, between which documents lie; "
            "use a method that reads no text: --method round or magnitude"
        )
    return around


def _check_length(tokens: int, length: int, source: str) -> None:
    if tokens < length:
        raise InputError(
            f"{source} has {tokens:,} tokens, and a row to calibrate or measure on takes "
            f"{length:,}; give a longer text, or take shorter rows with --window"
        )
