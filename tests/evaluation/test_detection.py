"""The area under the ROC curve beside scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.evaluation.detection import Ranking

THINGS = st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=2)


@given(THINGS)
def test_it_is_scikit_learn_s(things: list[tuple[int, bool, int]]):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, there, weights = (np.array(column) for column in zip(*things, strict=True))
    ranking = Ranking(scores, there)
    for weighted in (None, weights.astype(float)):
        own = np.ones(len(scores)) if weighted is None else weighted
        if own[there].sum() and own[~there].sum():
            expected = metrics.roc_auc_score(there, scores, sample_weight=own)
            assert ranking.area(weighted) == pytest.approx(expected, abs=1e-12)
        else:
            assert ranking.area(weighted) is None


def test_ranks_by_hand():
    # Of six pairs of one that is there and one that isn't, four are in order and one is a tie.
    ranking = Ranking([3, 1, 2, 2, 0], [True, True, False, True, False])
    assert ranking.area() == pytest.approx(4.5 / 6)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="scores of shape"):
        Ranking([1.0, 2.0], [True])
