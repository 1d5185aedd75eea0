"""Metrics of several labels and of ordered classes against scikit-learn; thresholds by trial."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.evaluation.multilabel import (
    average_precision,
    best_threshold,
    f1_of,
    report,
    resampled_f1,
)
from llmctl.evaluation.ordinal import figures, median_class, quadratic_kappa

SCORED = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.8, 0.9])),
    min_size=1, max_size=30,
)  # fmt: skip


@pytest.mark.reference
@given(SCORED)
def test_average_precision_is_scikit_learns(rows: list[tuple[bool, float]]):
    metrics = pytest.importorskip("sklearn.metrics")
    true, scores = (np.array(side) for side in zip(*rows, strict=True))
    if true.any():
        expected = metrics.average_precision_score(true, scores)
        assert average_precision(true, scores) == pytest.approx(expected, abs=1e-12)
    else:
        assert average_precision(true, scores) == 0.0


@given(SCORED)
def test_no_threshold_is_better(rows: list[tuple[bool, float]]):
    true, scores = (np.array(side) for side in zip(*rows, strict=True))
    chosen = best_threshold(true, scores)
    if true.any() and not true.all():
        tried = [f1_of((true & (scores >= t)).sum(), (scores >= t).sum(), true.sum())
                 for t in np.linspace(0, 1, 101)]  # fmt: skip
        given = scores >= chosen
        assert f1_of((true & given).sum(), given.sum(), true.sum()) == pytest.approx(max(tried))
    else:
        assert chosen == 0.5


@pytest.mark.reference
def test_the_report_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    found, limits = generator.uniform(size=(80, 4)), np.array([0.3, 0.5, 0.6, 0.9])
    true = generator.uniform(size=(80, 4)) < 0.2 + 0.5 * found
    given_labels = found >= limits
    drawn = resampled_f1(given_labels, true, resamples=400, seed=1)
    told = report(found, true, limits, list("abcd"), drawn)
    for average, key in (("micro", "micro_f1"), ("macro", "macro_f1")):
        assert told[key] == pytest.approx(metrics.f1_score(true, given_labels, average=average))
    for average, key in (("micro", "micro_average_precision"), ("macro", "mean_average_precision")):
        expected = metrics.average_precision_score(true, found, average=average)
        assert told[key] == pytest.approx(expected)
    assert told["exact_match"] == pytest.approx(metrics.accuracy_score(true, given_labels))
    low, high = told["intervals"]["micro_f1"]
    assert low < told["micro_f1"] < high < low + 0.2
    assert drawn.mean(0) == pytest.approx([told["micro_f1"], told["macro_f1"]], abs=0.02)


@pytest.mark.reference
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]):
    metrics = pytest.importorskip("sklearn.metrics")
    true, answers = (np.array(side) for side in zip(*pairs, strict=True))
    if len({*true.tolist(), *answers.tolist()}) > 1:
        expected = metrics.cohen_kappa_score(true, answers, weights="quadratic", labels=range(5))
        assert quadratic_kappa(true, answers, 5) == pytest.approx(expected, abs=1e-12)
    assert figures(true, answers, 5)["mean_error"] == np.abs(true - answers).mean()


def test_the_median_is_least_far_off():
    shares = np.random.default_rng(0).dirichlet(np.ones(5) / 2, size=200)
    places = np.arange(5)
    expected = np.abs(places[:, None] - places) @ shares.T
    found = median_class(shares)
    assert expected[found, np.arange(200)] == pytest.approx(expected.min(0))
    assert (found != shares.argmax(-1)).any()
