"""Durations, counts and sizes: fixed examples, and what holds for every number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config import Config, Seconds, build
from llmctl.errors import ConfigError, UsageError
from llmctl.reporting.units import age, count, duration, parse_duration, parse_size, short, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600), ("90s", 90), ("1h30m", 5400), ("600", 600), ("2d", 172800),
        ("1.5h", 5400), (" 1H 30M ", 5400), ("0", 0), ("1d2h3m4s", 93784),
    ],
)  # fmt: skip
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "ten", "-5", "5x", "1h1h", "30m1h", "1:30", "1 0", "m", "nan", "inf", "1e3",
        "9" * 400,
    ],
)  # fmt: skip
def test_parse_duration_refuses_and_names_what_was_given(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


def test_a_wrong_duration_in_a_configuration_names_its_field() -> None:
    class Limits(Config):
        time_limit: Seconds

    with pytest.raises(ConfigError, match=r"time_limit.*'soon' is not a duration"):
        build(Limits, {"time_limit": "soon"})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("10b", 10), ("64kB", 64_000), ("256MB", 256_000_000),
        (" 1.5 gb ", 1_500_000_000), ("1GiB", 1 << 30), ("2TiB", 2 << 40), ("0.5KiB", 512),
    ],
)  # fmt: skip
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "1M", "1 2", "5XB", "1,5GB", "½GB", "nan"])
def test_parse_size_refuses_and_names_what_was_given(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.text(alphabet="0123456789.dhms -", max_size=12))
def test_parse_duration_gives_seconds_or_a_usage_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except UsageError:
        return
    assert math.isfinite(seconds)
    assert seconds >= 0


@given(st.tuples(*[st.integers(0, 99)] * 4).filter(any))
def test_parse_duration_adds_its_parts(parts: tuple[int, int, int, int]) -> None:
    d, h, m, s = parts
    assert parse_duration(f"{d}d{h}h{m}m{s}s") == ((d * 24 + h) * 60 + m) * 60 + s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (4.24, "4.2 s"), (59.96, "1 min 00 s"), (192, "3 min 12 s"),
        (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (86399.7, "1 d 0 h"),
        (100 * 3600, "4 d 4 h"), (math.nan, "?"), (math.inf, "?"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (950, "950"), (999.6, "1.00 k"), (1000, "1.00 k"), (12_345_678, "12.3 M"),
        (4_560_000, "4.56 M"), (99_950, "100 k"), (999_499, "999 k"), (999_500, "1.00 M"),
        (-12_345, "-12.3 k"), (7.89e9, "7.89 G"), (1e20, "100000 P"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_count(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (512, "512 B"), (3_400_000, "3.4 MB"), (9_960, "10 kB"), (12e9, "12 GB")],
)
def test_size(number: float, text: str) -> None:
    assert size(number) == text


@given(st.floats(1, 1e17))
def test_a_count_is_right_to_its_last_figure(number: float) -> None:
    figures, _, prefix = count(number).partition(" ")
    value = float(figures) * 1000 ** ["", "k", "M", "G", "T", "P"].index(prefix)
    assert value == pytest.approx(number, rel=0.0051 if number >= 100 else 0.5)
    assert float(figures) < 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "just now"), (59.9, "just now"), (60, "1 min ago"), (330, "5 min ago"),
        (3 * 3600 + 1, "3 h ago"), (2.5 * 86400, "2 d ago"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"), (3e-4, "3e-4"), (2.5e-4, "2.5e-4"), (0.01, "0.01"), (0.1, "0.1"),
        (0.0, "0"), (-1e-3, "-1e-3"), (1.0, "1"), (250.0, "250"), (12.5, "12.5"), (1e38, "1e38"),
        (1e-30, "1e-30"), (1 / 3, "0.3333333333"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_short(value: float, text: str) -> None:
    assert short(value) == text


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_short_is_the_number_to_ten_figures(value: float) -> None:
    assert float(short(value)) == pytest.approx(value, rel=1e-9)
    assert len(short(value)) <= len(repr(value)) + 1
