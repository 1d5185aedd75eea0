"""Figures of similarity against scipy, scikit-learn, closed forms and tables by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmctl.evaluation import similarity

RANDOM = np.random.default_rng(0)


def test_spearman_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for _ in range(20):
        a = RANDOM.integers(0, 6, 40).astype(float)  # with ties
        b = a + RANDOM.normal(size=40)
        assert similarity.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
        assert similarity.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert math.isnan(similarity.spearman(np.ones(4), np.arange(4.0)))


def test_retrieval_by_hand():
    """Two queries among four texts; the second query is text 3 itself, which is no answer."""
    scores = np.asarray([[0.9, 0.8, 0.7, 0.1], [0.2, 0.3, 0.1, 1.0]])
    found = similarity.retrieved(
        lambda begin, stop: scores[begin:stop], [{1, 2}, {0}], [set(), {3}]
    )
    np.testing.assert_allclose(found.recall[1], [0, 0])
    np.testing.assert_allclose(found.recall[5], [1, 1])
    np.testing.assert_allclose(found.reciprocal_rank, [1 / 2, 1 / 2])
    ideal = 1 + 1 / math.log2(3)
    np.testing.assert_allclose(
        found.ndcg, [(1 / math.log2(3) + 1 / math.log2(4)) / ideal, 1 / math.log2(3)]
    )
    assert found.figures()["mrr"] == pytest.approx(0.5)


def test_ndcg_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    scores = RANDOM.normal(size=(30, 50))
    relevant = [set(RANDOM.choice(50, size=3, replace=False).tolist()) for _ in range(30)]
    truth = np.zeros((30, 50))
    for row, belongs in enumerate(relevant):
        truth[row, list(belongs)] = 1
    found = similarity.retrieved(
        lambda begin, stop: scores[begin:stop], relevant, [set() for _ in relevant]
    )
    assert found.figures()["ndcg"] == pytest.approx(metrics.ndcg_score(truth, scores, k=10))


def test_alignment_and_uniformity_have_closed_forms():
    """Pairs at an angle θ have 2 − 2 cos θ; opposite points are 4 apart, squared."""
    angle = 0.3
    a = np.asarray([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    turn = np.asarray([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    b = (a @ turn).astype(np.float32)
    assert similarity.alignment(a, b) == pytest.approx(2 - 2 * math.cos(angle), rel=1e-5)
    opposite = np.asarray([[3.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    assert similarity.uniformity(opposite) == pytest.approx(-8.0)
    assert similarity.uniformity(np.ones((5, 3), dtype=np.float32)) == pytest.approx(0.0, abs=1e-6)


def test_resamples_are_paired():
    scores = RANDOM.normal(size=200)
    guess = scores + RANDOM.normal(size=200)
    drawn = similarity.resampled_spearman([guess, guess, -guess], scores, resamples=50, seed=1)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_allclose(drawn[0], -drawn[2])
    assert drawn[0].std() > 0
    low, high = similarity.mean_interval(scores, resamples=500, seed=0)
    assert low < scores.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / math.sqrt(200), rel=0.2)


def test_tfidf_tells_texts_apart():
    pytest.importorskip("sklearn")
    rows = similarity.tfidf_vectors(["the sea is wide", "the sea is wide", "a tram stops"])
    product = (rows @ rows.T).toarray()
    assert product[0, 1] == pytest.approx(1.0)
    assert product[0, 2] == 0.0
    assert similarity.tfidf_vectors(["!", "?"]).shape[0] == 2
