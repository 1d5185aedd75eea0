"""Counter-based randomness: permutations, uniform numbers, the same ones for ever."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.random import bits, integers, key_of, permute, uniform

KEYS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("size", [*range(1, 201), 4095, 4096, 4097, 100_003])
def test_permute_is_a_bijection(size: int):
    image = permute(key_of("bijection", size), size, np.arange(size))
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


@given(key=KEYS, size=st.integers(1, 2**40), data=st.data())
def test_permute_of_huge_sizes_stays_inside_and_keeps_positions_apart(
    key: int, size: int, data: st.DataObject
):
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50, unique=True))
    image = permute(key, size, np.asarray(positions, dtype=np.int64))
    assert ((image >= 0) & (image < size)).all()
    assert len(set(image.tolist())) == len(positions)


@given(key=KEYS, size=st.integers(1, 300), start=st.integers(0, 299))
def test_permute_sends_a_position_to_the_same_place_however_asked(key: int, size: int, start: int):
    start %= size
    whole = permute(key, size, np.arange(size))
    part = permute(key, size, np.arange(start, size))
    np.testing.assert_array_equal(part, whole[start:])
    assert permute(key, size, np.array([start]))[0] == whole[start]


def test_permute_does_not_change_the_positions_given():
    positions = np.arange(50)
    permute(1, 50, positions)
    np.testing.assert_array_equal(positions, np.arange(50))


def test_permutations_of_different_keys_are_as_different_as_random_ones():
    """Two random permutations agree at a Poisson(1) number of places."""
    size = 1000
    images = [permute(key_of("differ", n), size, np.arange(size)) for n in range(100)]
    agreements = [int((a == b).sum()) for a, b in pairwise(images)]
    assert max(agreements) < 10
    assert abs(np.mean(agreements) - 1) < 5 / np.sqrt(len(agreements))


@pytest.mark.parametrize("size", [3, 10, 200])
def test_each_position_goes_everywhere_equally_often(size: int):
    """χ² over many keys; the bound is five standard deviations above its mean."""
    draws = 200 * size
    for position in (0, size // 2, size - 1):
        hits = np.zeros(size)
        for number in range(draws // 50):
            images = permute(key_of("spread", size, number), size, np.array([position]))
            hits[images[0]] += 1
        expected = hits.sum() / size
        chi2 = ((hits - expected) ** 2 / expected).sum()
        assert chi2 < (size - 1) + 5 * np.sqrt(2 * (size - 1))


def test_uniform_is_uniform():
    """Kolmogorov and Smirnov's statistic: √n · D passes 1.95 once in a thousand."""
    n = 100_000
    for key in (0, 1, key_of("uniform")):
        draws = np.sort(uniform(key, np.arange(n)))
        assert draws[0] >= 0.0
        assert draws[-1] < 1.0
        steps = np.arange(n + 1) / n
        distance = max((steps[1:] - draws).max(), (draws - steps[:-1]).max())
        assert np.sqrt(n) * distance < 1.95


def test_uniform_numbers_of_neighbouring_counters_and_keys_are_uncorrelated():
    n = 100_000
    counters = np.arange(n)
    base = uniform(5, counters, 0)
    others = [
        uniform(6, counters, 0),
        uniform(5, counters, 1),
        uniform(5, counters + 1, 0),
        uniform(5, 0, counters),
    ]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(n)


@given(
    key=KEYS,
    counters=st.lists(
        st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=30
    ),
    cut=st.integers(0, 30),
)
def test_uniform_is_the_same_however_counters_are_grouped(
    key: int, counters: list[tuple[int, int]], cut: int
):
    a, b = np.asarray(counters).T
    whole = uniform(key, a, b)
    parts = np.concatenate([uniform(key, a[:cut], b[:cut]), uniform(key, a[cut:], b[cut:])])
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole, [uniform(key, x, y).item() for x, y in counters])
    np.testing.assert_array_equal(uniform(key, a[:, None], b[None, :]).diagonal(), whole)


def test_the_order_of_counters_matters():
    assert bits(1, 2, 3) != bits(1, 3, 2)
    assert bits(1, 2) != bits(1, 2, 0)


@given(key=KEYS, below=st.integers(1, 2**40))
def test_integers_stay_below(key: int, below: int):
    drawn = integers(key, below, np.arange(200))
    assert ((drawn >= 0) & (drawn < below)).all()


def test_integers_hit_every_number_equally_often():
    below, n = 7, 70_000
    counts = np.bincount(integers(3, below, np.arange(n)), minlength=below)
    expected = n / below
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < (below - 1) + 5 * np.sqrt(2 * (below - 1))


def test_integers_take_a_bound_for_each_counter():
    below = np.array([1, 2, 50, 1000])
    np.testing.assert_array_equal(
        integers(9, below, np.arange(4)),
        [integers(9, int(limit), n).item() for n, limit in enumerate(below)],
    )


def test_bits_begin_as_splitmix64_does():
    """The first output of SplitMix64 from seeds 0 and 1234567, as its authors' C code gives it."""
    assert int(bits(0)) == 0xE220A8397B1DCDAF
    assert int(bits(1234567)) == 6457827717110365317


def test_the_numbers_never_change():
    """Runs made by any version must resume: these values are part of the format."""
    key = key_of(7, "order", 3)
    assert key == 12199752852984971372
    assert uniform(key, np.arange(3), 1).tolist() == [
        0.6164127620992883,
        0.8694086930455022,
        0.5841085868633971,
    ]
    assert integers(key, 1000, np.arange(8)).tolist() == [296, 3, 736, 297, 905, 723, 98, 679]
    assert permute(key, 13, np.arange(13)).tolist() == [10, 3, 4, 12, 2, 9, 11, 5, 0, 1, 8, 6, 7]


def test_key_of_tells_its_parts_apart():
    keys = [key_of(1, 23), key_of(12, 3), key_of(123), key_of("1", "2", "3"), key_of(1, 2, 3, "")]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
