"""Labels that say there is none, and numbers that are a scale."""

from __future__ import annotations

import pytest

from llmctl.data.tables.labels import doubts, without_label


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "1", "2", "-1"], "-1"),
        (["-1", "0", "1", "2", "3"], "-1"),
        (["entailment", "neutral", "-"], "-"),
        (["-1", "0", "1"], None),  # negative, neutral, positive
        (["-1", "1"], None),
        (["-2", "-1", "0", "1", "2"], None),
        (["-1", "0", "2", "3"], None),
        (["0", "1", "2"], None),
        (["+", "-"], None),
        (["-", "0", "1"], None),
        ([], None),
    ],
)
def test_the_label_that_means_none(labels: list[str], expected: str | None) -> None:
    assert without_label(labels) == expected


def test_a_seldom_minus_one_beside_two_classes_is_asked_about() -> None:
    assert "class of 5 examples beside 0 and 1" in doubts({"-1": 5, "0": 100, "1": 90})[0]
    assert not doubts({"-1": 60, "0": 100, "1": 90})


@pytest.mark.parametrize(
    ("labels", "each", "asked"),
    [
        ([f"{n / 10}" for n in range(51)], 100, True),
        ([str(n) for n in range(30)], 3, True),
        ([str(n) for n in range(77)], 100, False),  # intents by number
        (["1", "1.5", "2", "2.5", "3"], 2, False),  # stars
        ([f"intent {n}" for n in range(150)], 3, False),
    ],
)
def test_a_scale_of_numbers_is_asked_about(labels: list[str], each: int, asked: bool) -> None:
    notes = doubts(dict.fromkeys(labels, each))
    assert len(notes) == asked
    if asked:
        assert f"{len(labels)} numbers from {labels[0]} to {labels[-1]}" in notes[0]
