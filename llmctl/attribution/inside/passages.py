"""Texts beside the one that is looked at: documents cut to what a network reads, as ids.

N passages, P places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.tokenizers import Tokenizer

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class DocumentPart:
    """A piece of a document."""

    name: str
    """Where it stands, for people."""
    ids: Ids
    """Its tokens with the special ones around them."""
    own: slice
    """Which of them are the text's own."""


def passages_of(
    documents: Iterable[tuple[str, Ids]], tokenizer: Tokenizer, length: int, *, closed: bool
) -> Iterator[DocumentPart]:
    """Documents in pieces of so many tokens at most, special ones included; those of one document
    are about as long.

    documents: a name and ids without special tokens. closed: whether what stands behind a text is
    put there, as for what reads both ways.
    """
    before = tokenizer.layout.before
    after = tokenizer.layout.after if closed else ()
    room = max(1, length - len(before) - len(after))
    for name, ids in documents:
        each = -(-len(ids) // max(1, -(-len(ids) // room)))
        for begin in range(0, len(ids), max(1, each)):
            part = ids[begin : begin + each]
            own = slice(len(before), len(before) + len(part))
            told = name if len(ids) <= room else f"{name}, from token {begin + 1}"
            yield DocumentPart(told, np.concatenate([before, part, after]).astype(np.int64), own)


def evenly(count: int, most: int) -> list[int]:
    """Numbers below ``count``, evenly apart, ``most`` of them at most."""
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def own_places(passage: DocumentPart, *, is_decoder: bool) -> slice:
    """The places whose states stand for a text.

    In a decoder a row's first token takes the attention that no other has a use for (Xiao et al.
    2023), and its state says nothing of the text: it is left out where there are others.
    """
    begin, stop = passage.own.start, passage.own.stop
    return slice(begin + (is_decoder and begin == 0 and stop > 1), stop)
