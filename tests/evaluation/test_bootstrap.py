"""Intervals: closed forms, and how often they hold the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.evaluation.bootstrap import paired_difference, percentile_interval, resample_counts


def test_percentile_interval_by_hand() -> None:
    assert percentile_interval(np.arange(101), 0.5) == (25.0, 75.0)
    assert percentile_interval(np.arange(101), 0.9) == pytest.approx((5.0, 95.0))
    assert percentile_interval([3.0], 0.95) == (3.0, 3.0)
    # Between two values: linear, 0.05 · 1 and 0.95 · 1.
    assert percentile_interval([0.0, 1.0], 0.9) == pytest.approx((0.05, 0.95))


@pytest.mark.parametrize(
    ("values", "confidence"),
    [([], 0.95), ([1.0, math.nan], 0.95), ([1.0], 0.0), ([1.0], 1.0), ([[1.0]], 0.9)],
)
def test_percentile_interval_refuses(values: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match=r"interval|confidence"):
        percentile_interval(values, confidence)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(sum))
def test_a_resample_has_as_many_examples_and_no_new_kind(counts: list[int]) -> None:
    kinds = np.array(counts)
    drawn = resample_counts(kinds, 20, np.random.default_rng(0))
    assert (drawn.sum(axis=1) == kinds.sum()).all()
    assert not drawn[:, kinds == 0].any()


def test_resampled_counts_have_the_multinomial_moments() -> None:
    kinds, resamples = np.array([60, 30, 10]), 20_000
    drawn = resample_counts(kinds, resamples, np.random.default_rng(0))
    variance = kinds * (1 - kinds / 100)
    # Five standard errors of a mean and of a variance (of something close to normal).
    assert (np.abs(drawn.mean(0) - kinds) < 5 * np.sqrt(variance / resamples)).all()
    assert drawn.var(0) == pytest.approx(variance, rel=5 * math.sqrt(2 / resamples))


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="0 examples"):
        resample_counts(np.array([0, 0]), 10, np.random.default_rng(0))


def test_intervals_of_accuracy_cover_the_truth_as_often_as_they_say() -> None:
    # The percentile interval of a mean of 400 coins that fall right 7 times in 10: coverage 95 %
    # within five binomial standard errors of 600 trials (0.044).
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(600):
        right = generator.binomial(400, 0.7)
        drawn = resample_counts(np.array([right, 400 - right]), 500, generator)
        low, high = percentile_interval(drawn[:, 0] / 400)
        covered += low <= 0.7 <= high
    assert covered / 600 == pytest.approx(0.95, abs=0.045)


def test_paired_difference_by_hand() -> None:
    a = [True] * 60 + [True] * 20 + [False] * 5 + [False] * 15
    b = [True] * 60 + [False] * 20 + [True] * 5 + [False] * 15
    found = paired_difference(a, b, resamples=20_000)
    assert json.loads(json.dumps(found)) == found
    assert (found["only_a"], found["only_b"]) == (20, 5)
    assert found["difference"] == pytest.approx(0.15)
    # The variance of one difference is (20 + 5)/100 - 0.15²; the normal interval around 0.15,
    # to one example, the step in which quantiles move.
    half = 1.96 * math.sqrt((0.25 - 0.15**2) / 100)
    assert (found["low"], found["high"]) == pytest.approx((0.15 - half, 0.15 + half), abs=0.011)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_is_the_difference_of_the_accuracies(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = paired_difference(a, b)
    assert found["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert found["difference"] == pytest.approx(-paired_difference(b, a)["difference"])
    assert found["low"] <= found["difference"] <= found["high"]


def test_answers_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([], [])
