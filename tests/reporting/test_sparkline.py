"""Sparklines: drawn by hand, and what holds for every series."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.reporting.sparkline import BARS, sparkline

SERIES = st.lists(st.floats(), max_size=60)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 20, "▁▂▃▄▅▆▇█"),
        ([7, 0], 20, "█▁"),
        ([3, 3, 3], 20, "▁▁▁"),
        ([0, 0, 7, 7], 2, "▁█"),  # means of pairs
        ([0, 4, 3, 5, 6, 8], 3, "▁▄█"),  # means 2, 4, 7; 4 is bar 2/5 · 7 = 2.8
        ([0, math.nan, 7], 20, "▁ █"),
        ([0, math.nan, math.inf, 7], 2, "▁█"),  # what isn't finite takes no part in a mean
        ([math.nan, math.inf], 20, "  "),
        ([], 20, ""),
    ],
)
def test_by_hand(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


@given(SERIES, st.integers(1, 30))
def test_as_long_as_the_series_up_to_the_width(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= {*BARS, " "}


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_orders_as_the_values_do(values: list[float]) -> None:
    heights = [BARS.index(bar) for bar in sparkline(values)]
    if min(values) / 2 < max(values) / 2:
        assert heights[values.index(max(values))] == 7
        assert heights[values.index(min(values))] == 0
    ordered = sorted(range(len(values)), key=lambda i: values[i])
    assert [heights[i] for i in ordered] == sorted(heights)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=20), st.integers(-50, 50))
def test_unmoved_by_an_offset(values: list[int], offset: int) -> None:
    assert sparkline([float(v + offset) for v in values]) == sparkline([float(v) for v in values])
