"""Learning-rate schedules against their closed forms."""

from __future__ import annotations

import math

import pytest

from llmctl.training.optim.schedules import lr_multiplier


def test_rises_linearly_during_the_warm_up():
    assert lr_multiplier(0.0, 0.1, "linear") == 0.0
    assert lr_multiplier(0.05, 0.1, "linear") == pytest.approx(0.5)
    assert lr_multiplier(0.1, 0.1, "linear") == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_falls_to_zero(schedule: str):
    assert lr_multiplier(1.0, 0.1, schedule) == pytest.approx(0.0, abs=1e-12)


def test_halfway_after_the_warm_up():
    progress = 0.1 + 0.9 * 0.25
    assert lr_multiplier(progress, 0.1, "linear") == pytest.approx(0.75)
    assert lr_multiplier(progress, 0.1, "cosine") == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )
    assert lr_multiplier(progress, 0.1, "constant") == 1.0


def test_no_warm_up_starts_at_the_peak():
    assert lr_multiplier(0.0, 0.0, "linear") == 1.0


def test_warm_up_stable_decay_stays_at_the_peak_and_falls_in_the_end():
    shares = {p: lr_multiplier(p, 0.1, "wsd", 0.2) for p in (0.05, 0.1, 0.5, 0.8, 0.9, 1.0)}
    expected = {0.05: 0.5, 0.1: 1.0, 0.5: 1.0, 0.8: 1.0, 0.9: 0.5, 1.0: 0.0}
    assert shares == pytest.approx(expected)


def test_a_decay_longer_than_what_follows_the_warm_up_is_linear():
    for progress in (0.1, 0.4, 0.9):
        assert lr_multiplier(progress, 0.1, "wsd", 1.0) == pytest.approx(
            lr_multiplier(progress, 0.1, "linear")
        )
