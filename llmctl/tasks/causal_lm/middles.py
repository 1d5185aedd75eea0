"""How well a language model fills in the middle: bits per byte of the middles of documents with
both sides known, beside those of the same middles from what comes before alone, as a model writes
that doesn't fill in (Bavarian et al. 2022, §4).

Each document, as far as a row takes it, is divided at two of its characters, the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice, tee
from typing import Any

import numpy as np

from llmctl.data.random import key_of, uniform
from llmctl.evaluation.perplexity import bits_per_byte_interval
from llmctl.inference.scoring import Query, Scorer
from llmctl.tasks.causal_lm.fim import LEAST_TOKENS, Divider, fim_tokens, infilling_prompt
from llmctl.tasks.causal_lm.texts import ScoredDocument
from llmctl.tokenizers import Tokenizer

MOST_DOCUMENTS = 500
SPARE = 16
"""Tokens left for the three marks, and for what a text has more when it is divided within words."""


def measure_middles(
    documents: Iterable[ScoredDocument],
    tokenizer: Tokenizer,
    scorer: Scorer,
    *,
    longest: int,
    **resampling: Any,
) -> dict[str, Any] | None:
    """Bits per byte with both sides and with what comes before alone, and their difference with its
    interval; None where no document has a middle.

    longest: tokens that the model reads at once. resampling: of ``bits_per_byte_interval``.
    """
    asked, sized = tee(_divided(documents, tokenizer, longest))
    answers = scorer.score(query for pair, _ in asked for query in pair)
    nats: list[tuple[float, float]] = []
    sizes: list[int] = []
    for (_, size), both, before in zip(sized, answers, answers, strict=False):
        nats.append((-both.scores[0].total, -before.scores[0].total))
        sizes.append(size)
    if not sizes:
        return None
    both_N, before_N = np.array(nats).T
    bytes_in_all = sum(sizes) * math.log(2)
    interval = bits_per_byte_interval(both_N - before_N, sizes, **resampling)
    low, high = interval or (None, None)
    difference = float((both_N - before_N).sum() / bytes_in_all)
    return {
        "documents": len(sizes),
        "both_sides": float(both_N.sum() / bytes_in_all),
        "before_alone": float(before_N.sum() / bytes_in_all),
        "difference": {"difference": difference, "low": low, "high": high},
    }


def _divided(
    documents: Iterable[ScoredDocument], tokenizer: Tokenizer, longest: int
) -> Iterator[tuple[tuple[Query, Query], int]]:
    """What is asked of each document's middle, with both sides and with the first alone, and how
    many bytes it has."""
    tokens, divide = fim_tokens(tokenizer), Divider(tokenizer)
    assert tokens is not None
    key, start = key_of(0, "middles"), tokenizer.special["bos"]
    sizes = tokenizer.token_bytes
    for number, document in enumerate(islice(documents, MOST_DOCUMENTS)):
        ids = document.ids[: longest - SPARE]
        if len(ids) < LEAST_TOKENS:
            continue
        draws = uniform(key, number, np.arange(2)).tolist()
        prefix, middle, suffix = divide(ids, *draws)
        if not sizes[middle].sum():
            continue
        prompt = infilling_prompt(tokens, [start], prefix.tolist(), suffix.tolist())
        both = Query(np.array(prompt), [middle], document.source)
        before = Query(np.array([start, *prefix]), [middle], document.source)
        yield (both, before), int(sizes[middle].sum())
