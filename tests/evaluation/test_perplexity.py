"""Perplexity by its definition: a toy model with a known context, and windows one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.evaluation.perplexity import (
    Passage,
    Tally,
    TokenIds,
    bits_per_byte_interval,
    perplexity,
    windows,
)

sizes = st.tuples(st.integers(2, 60), st.integers(1, 15)).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.integers(1, pair[1]))
)


@given(sizes)
def test_each_token_is_scored_once_behind_enough_context(values: tuple[int, int, int]):
    length, window, stride = values
    scored = []
    for start, first, stop in windows(length, window, stride):
        assert 0 <= start < first < stop <= length
        assert stop - 1 - start <= window  # what the model reads
        for token in range(first, stop):
            context = token - start
            assert context >= min(token, window - stride + 1)
            scored.append(token)
    assert scored == list(range(1, length))


def test_windows_by_hand():
    # Nine tokens, a model that reads four: the first window scores 1–4 from 0–3.
    assert list(windows(9, 4, 4)) == [(0, 1, 5), (4, 5, 9)]
    assert list(windows(9, 4, 1)) == [(0, 1, 5), (1, 5, 6), (2, 6, 7), (3, 7, 8), (4, 8, 9)]
    assert list(windows(3, 4, 2)) == [(0, 1, 3)]
    with pytest.raises(ValueError, match="stride of 5"):
        list(windows(9, 4, 5))


def toy(context: TokenIds, token: int) -> float:
    """A probability that depends on every token of the context."""
    state = 0
    for number in context.tolist():
        state = (state * 31 + number + 7) % 1009
    return ((state + 13 * token) % 97 + 1) / 100


def toy_log_probs(pairs: Iterable[tuple[TokenIds, TokenIds]]) -> Iterator[np.ndarray]:
    for context, continuation in pairs:
        ids = np.concatenate((context, continuation))
        yield np.array(
            [math.log(toy(ids[:place], int(ids[place]))) for place in range(len(context), len(ids))]
        )


def make_passages() -> list[Passage]:
    generator = np.random.default_rng(0)
    return [Passage(generator.integers(0, 50, n), 3 * n) for n in (2, 9, 30, 4, 17)]


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_equals_brute_force_one_token_at_a_time(stride: int):
    """Every token by itself, with the context that its window gives it."""
    window = 8
    total, tokens = 0.0, 0
    for passage in make_passages():
        ids = passage.ids
        ends = [window + 1]
        while ends[-1] < len(ids):
            ends.append(ends[-1] + stride)
        for token in range(1, len(ids)):
            end = min(next(end for end in ends if end > token), len(ids))
            total -= math.log(toy(ids[max(0, end - 1 - window) : token], int(ids[token])))
            tokens += 1
    seen: list[int] = []
    tally = perplexity(
        make_passages(), toy_log_probs, window=window, stride=stride,
        progress=lambda tally: seen.append(tally.tokens),
    )  # fmt: skip
    assert (tally.tokens, tally.documents, tally.bytes) == (tokens, 5, 3 * 62)
    assert tally.loss == pytest.approx(total / tokens)
    assert tally.perplexity == pytest.approx(math.exp(total / tokens))
    assert tally.bits_per_byte == pytest.approx(total / math.log(2) / (3 * 62))
    assert seen == sorted(seen)
    assert seen[-1] == tokens


def test_the_context_stops_at_the_document():
    together = perplexity(make_passages(), toy_log_probs, window=8, stride=4)
    alone = [perplexity([one], toy_log_probs, window=8, stride=4) for one in make_passages()]
    assert together.nll == pytest.approx(sum(tally.nll for tally in alone))


def test_a_uniform_model_has_the_vocabulary_for_its_perplexity():
    def uniform(pairs: Iterable[tuple[TokenIds, TokenIds]]) -> Iterator[np.ndarray]:
        return (np.full(len(continuation), -math.log(50)) for _, continuation in pairs)

    tally = perplexity(make_passages(), uniform, window=8, stride=2)
    assert tally.perplexity == pytest.approx(50)
    # 57 tokens of log₂ 50 bits on 186 bytes.
    assert tally.bits_per_byte == pytest.approx(57 * math.log2(50) / 186)


def test_an_impossible_token_makes_it_infinite():
    tally = Tally(nll=math.inf, tokens=3, bytes=9, documents=1)
    assert tally.report()["perplexity"] == math.inf
    assert Tally(nll=5000.0, tokens=2).perplexity == math.inf


def test_the_interval_is_that_of_a_ratio():
    """Against the delta method: the standard error of a ratio of means."""
    generator = np.random.default_rng(3)
    size = generator.integers(50, 150, 400)
    nll = size * (1.2 + 0.3 * generator.standard_normal(400))
    found = bits_per_byte_interval(nll, size, resamples=4000)
    assert found is not None
    ratio = nll.sum() / size.sum()
    error = np.sqrt(((nll - ratio * size) ** 2).mean() / 400) / size.mean()
    expected = np.array([ratio - 1.96 * error, ratio + 1.96 * error]) / math.log(2)
    # Quantiles of 4,000 draws are good to some 5 % of a standard error each.
    assert found == pytest.approx(expected, abs=0.2 * error)
    assert bits_per_byte_interval(nll[:1], size[:1]) is None


def test_many_documents_are_drawn_in_groups():
    generator = np.random.default_rng(4)
    size = np.full(20_000, 100)
    nll = 100 * (1 + 0.5 * generator.standard_normal(20_000))
    found = bits_per_byte_interval(nll, size, resamples=2000)
    assert found is not None
    low, high = found
    # 1.96 standard errors each way, whatever the groups; 2,000 draws tell it to a few percent.
    assert (high - low) * math.log(2) == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(20_000), rel=0.12)
