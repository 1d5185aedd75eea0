"""What a language model gives back of its training text.

- **Extraction** (Carlini et al. 2023, definition 3.1): a stretch of a training document counts as
  extractable where greedy decoding, given the tokens before it, writes it word for word. The same
  of documents that were held out tells what can be guessed without having read it.
- **Exposure** (Carlini et al. 2019, eq. 2) of canaries, texts with a secret number that were
  planted in the training text: log₂ |R| − log₂ rank, the rank being that of the secret among others
  of its form by likelihood. Of a secret that was never read it is 1/ln 2 = 1.44 bits on average.

N stretches, C candidates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import integers, key_of, permute
from llmctl.data.shards.files import ShardReader
from llmctl.evaluation.wilson import wilson_interval

PREFIX_TOKENS = 32
"""Tokens of a prefix, and of what is to follow it."""
ALTERNATIVES = 999
"""Other numbers that a canary's secret is ranked among, at most."""
BY_CHANCE = 1 / math.log(2)

_DIGIT = re.compile("[0-9]")


def stretches(
    reader: ShardReader, count: int, length: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(prefix, continuation) of ``length`` tokens each, from as many documents as there are of at
    least twice that, drawn without replacement, at a place drawn in each."""
    long_enough = np.flatnonzero(reader.document_lengths >= 2 * length)
    count = min(count, len(long_enough))
    key = key_of("stretches", seed)
    found = []
    order = permute(key, len(long_enough), np.arange(count)) if count else np.arange(0)
    for document in long_enough[order].tolist():
        room = int(reader.document_lengths[document]) - 2 * length
        start = int(integers(key, room + 1, document))
        tokens = reader.tokens(document, start, start + 2 * length).astype(np.int64)
        found.append((tokens[:length], tokens[length:]))
    return found


def alternatives(canary: str, seed: int, most: int = ALTERNATIVES) -> list[str]:
    """The canary with other digits in the places of its own; all others where these are few.

    Raises ValueError for a text without a digit.

    >>> alternatives("my pin is 7", 0)[:2]
    ['my pin is 0', 'my pin is 1']
    """
    places = [match.start() for match in _DIGIT.finditer(canary)]
    if not places:
        raise ValueError("no digit")
    own = int("".join(canary[place] for place in places))
    total = 10 ** len(places)
    if total - 1 <= most:
        numbers = [number for number in range(total) if number != own]
    else:
        # Digit by digit, as a secret may have more than fit into an integer; repeats are dropped.
        rows = integers(
            key_of("canary", canary, seed), 10, np.arange(2 * most)[:, None], np.arange(len(places))
        )
        drawn = dict.fromkeys(int("".join(map(str, row))) for row in rows.tolist())
        numbers = [number for number in drawn if number != own][:most]
    texts = []
    for number in numbers:
        letters = list(canary)
        for place, digit in zip(places, f"{number:0{len(places)}d}", strict=True):
            letters[place] = digit
        texts.append("".join(letters))
    return texts


def exposure(log_probs_C: Sequence[float]) -> tuple[float, float]:
    """(bits, rank) of the first of some candidates; of those as likely as it half are before it.

    >>> exposure([-1.0, -2.0, -3.0, -4.0])
    (2.0, 1.0)
    """
    own, others = log_probs_C[0], np.asarray(log_probs_C[1:])
    rank = 1 + float((others > own).sum()) + float((others == own).sum()) / 2
    return math.log2(len(log_probs_C)) - math.log2(rank), rank


def figures(greedy: Sequence[bool], losses: Sequence[float]) -> dict[str, Any]:
    """The share that is extractable with its interval of 95 %, and nats a token; nothing of no
    stretches."""
    if not greedy:
        return {"stretches": 0, "extracted": None, "interval": None, "loss": None}
    total, right = len(greedy), sum(greedy)
    return {
        "stretches": total,
        "extracted": right / total,
        "interval": list(wilson_interval(right, total)),
        "loss": float(np.mean(losses)),
    }
