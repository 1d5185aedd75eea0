"""Plots: drawn by hand, and what holds for every one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.reporting.plot import COLOURS, GLYPHS, Series, glyph, plot


def drawn(*curves: list[tuple[float, float]], width: int = 5, height: int = 3) -> list[str]:
    series = [Series(f"run {number}", points) for number, points in enumerate(curves)]
    return plot(series, width=width, height=height).plain.split("\n")


def test_a_falling_line_by_hand():
    assert drawn([(0, 3), (4, 1)]) == [
        "3 ┤●●   ",
        "  │  ●  ",
        "1 ┤   ●●",
        "  └─────",
        "   0 2 4",
    ]


def test_two_curves_have_common_axes():
    """The second and the third end before the first."""
    assert drawn([(0, 2), (4, 2)], [(0, 1), (2, 1)], [(0, 3), (1, 3)]) == [
        "3 ┤■■   ",
        "  │●●●●●",
        "1 ┤▲▲▲  ",
        "  └─────",
        "   0 2 4",
    ]


def test_curves_that_meet_take_turns():
    assert drawn([(0, 1), (4, 1)], [(0, 1), (4, 1)], height=1)[0] == "1 ┤●▲●▲●"


def test_a_column_shows_the_mean_of_its_points():
    # 1 and 3 are of the first column, whose middle is 2; half-way to the last one's 3 is 2.5.
    lines = drawn([(0, 1), (0, 3), (8, 3), (8, 3)], [(8, 1)], width=3)
    assert [line[3:] for line in lines[:3]] == [" ●●", "●  ", "  ▲"]


def test_a_wide_range_is_logarithmic_and_says_so():
    """100, 10 and 1 are a row apart each."""
    lines = drawn([(0, 100), (2, 10), (4, 1)])
    assert [line.index("●") - lines[0].index("┤") for line in lines[:3]] == [1, 3, 5]
    assert [line.partition(" ┤")[0].strip() for line in (lines[0], lines[2])] == ["100", "1"]
    assert "(logarithmic)" in lines
    assert "(logarithmic)" not in drawn([(0, 3), (4, 0)])  # 0 has no logarithm


def test_nothing_to_draw():
    assert drawn([], [(1, math.nan), (2, math.inf)]) == ["no losses yet"]


def test_one_point_and_equal_points():
    assert drawn([(0, 5)]) == ["  │     ", "5 ┤●    ", "  │     ", "  └─────", "   0 0 1"]
    assert drawn([(0, 5), (4, 5)])[1] == "5 ┤●●●●●"


def test_each_curve_has_a_glyph_and_a_colour():
    count = len(GLYPHS) + 5
    assert len({glyph(number) for number in range(count)}) == count
    text = plot([Series("a", [(0, 1)]), Series("b", [(1, 2)])], width=4, height=2)
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles == {GLYPHS[0]: COLOURS[0], GLYPHS[1]: COLOURS[1]}


POINTS = st.lists(
    st.tuples(st.floats(0, 1e9), st.floats(-1e99, 1e99) | st.sampled_from([math.nan, math.inf])),
    max_size=30,
)


@given(st.lists(POINTS, min_size=1, max_size=4), st.integers(12, 60), st.integers(1, 12))
def test_any_points_fit_into_the_frame(curves, width: int, height: int):
    lines = drawn(*curves, width=width, height=height)
    if lines == ["no losses yet"]:
        return
    body = [line for line in lines if "┤" in line or "│" in line]
    assert len(body) == height
    assert {len(line.replace("│", "┤").partition("┤")[2]) for line in body} == {width}
    for number, points in enumerate(curves):
        if len(curves) == 1 and any(math.isfinite(y) for _, y in points):
            assert any(glyph(number) in line for line in body)


@pytest.mark.parametrize("spread", [0.0, 1e-12])
def test_a_span_of_next_to_nothing(spread: float):
    lines = drawn([(0, 2.0), (1, 2.0 + spread)])
    assert sum(line.count("●") for line in lines) == 5
