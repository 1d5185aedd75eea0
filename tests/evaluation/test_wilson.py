"""Wilson's interval against SciPy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.evaluation.wilson import wilson_interval


@pytest.mark.reference
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_equals_scipy(counts: tuple[int, int]):
    stats = pytest.importorskip("scipy.stats")
    right, total = counts
    for confidence in (0.95, 0.5):
        expected = stats.binomtest(right, total).proportion_ci(confidence, method="wilson")
        found = wilson_interval(right, total, confidence)
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_has_a_width_where_all_or_none_are_right():
    assert wilson_interval(0, 100) == (0.0, pytest.approx(0.037, abs=5e-4))
    low, high = wilson_interval(100, 100)
    assert (1 - low, high) == (pytest.approx(0.037, abs=5e-4), 1.0)


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_share_is_refused(right: int, total: int):
    with pytest.raises(ValueError, match=f"{right} right of {total}"):
        wilson_interval(right, total)
