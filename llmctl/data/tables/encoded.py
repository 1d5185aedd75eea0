"""Texts and pairs of them as ids with special tokens around, cut to what a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.tokenizers import Layout, Tokenizer

SHORTEST_TEXT = 8
"""Tokens of a text, special ones included: with fewer next to nothing of it is left."""


@dataclass(frozen=True)
class EncodedExample:
    """A text, or two, as ids with special tokens; ``second`` is where the second text starts."""

    ids: NDArray[np.int64]
    second: int
    label: float
    """The number of its class, or what a regression is to give."""
    cut: bool = False
    """Whether it was longer."""


def add_special_tokens(
    first: Sequence[int],
    second: Sequence[int] | None,
    layout: Layout,
    *,
    max_length: int,
    label: float = 0,
    pad: int | None = None,
    cuts_left: bool = False,
) -> EncodedExample:
    """A text, or two, with the special tokens around, cut to ``max_length``: see
    ``truncate_longest_first``.

    cuts_left: whether what is too long loses its beginning, not its end.
    pad: at the end of a decoder's text this token is padding, as transformers sees it.
    Raises ValueError if not even the special tokens fit.
    """
    before, between, after = layout.before, layout.between, layout.after
    if second is None:
        between = ()
    else:
        before, after = layout.pair_before, layout.pair_after
    special = len(before) + len(between) + len(after)
    a, b = truncate_longest_first(len(first), len(second or ()), max_length - special)
    cut = a < len(first) or b < len(second or ())
    if cuts_left:
        first, second = first[len(first) - a :], second and second[len(second) - b :]
    head = [*before, *first[:a], *between]
    ids = [*head, *(second or ())[:b], *after]
    begin = len(ids)
    if second is not None and layout.first_segment is not None:
        begin = len(head) - len(between) + layout.first_segment
    while pad is not None and len(ids) > 1 and ids[-1] == pad:
        ids.pop()
    return EncodedExample(np.asarray(ids, dtype=np.int64), begin, label, cut)


def truncate_longest_first(a: int, b: int, room: int) -> tuple[int, int]:
    """The lengths of two texts cut to fit into a room together as the `tokenizers` library does it
    (``longest_first``): the longer loses until both are as long; what is odd then stays with the
    longer one, or the second.

    Raises ValueError if there is no room at all.
    """
    if room < 0:
        raise ValueError(f"the special tokens alone are longer than max_length by {-room}")
    if a + b <= room:
        return a, b
    short, long = min(a, b), max(a, b)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if a > b else (short, long)


def encode_examples(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_length: int,
    number_of: Mapping[str, float] | None = None,
    *,
    pad: int | None = None,
) -> list[EncodedExample]:
    """Examples as ids with the special tokens that the tokenizer puts around them; their labels by
    number where the names are given.

    pad: see ``add_special_tokens``. Raises InputError for a text of which nothing is left to look
    at.
    """
    texts = [example.text for example in examples]
    pairs = [example.text_pair or "" for example in examples]
    ids, lengths = tokenizer.encode_batch([*texts, *pairs])
    parts: list[list[int]] = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    encoded = []
    for row, example in enumerate(examples):
        one = add_special_tokens(
            parts[row],
            parts[row + len(examples)] if example.text_pair is not None else None,
            tokenizer.layout,
            max_length=max_length,
            label=number_of[example.label or ""] if number_of else 0,
            pad=pad,
            cuts_left=tokenizer.cuts_left,
        )
        if not len(one.ids):
            raise InputError(
                f"{example.source} is empty, and the tokenizer puts no token around a text that "
                "could be looked at instead; leave it out"
            )
        encoded.append(one)
    return encoded


def pad_token(tokenizer: Tokenizer) -> int:
    """The token that fills short rows: the end of a document where there is none for padding, as
    with GPT-2's. Raises InputError if there is neither."""
    for role in ("pad", "eos"):
        if role in tokenizer.special:
            return tokenizer.special[role]
    raise InputError(
        "the tokenizer has no token for padding, nor for a document's end; use a model that has one"
    )
