"""Successive halving's arithmetic, beside the papers'."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import ConfigError, UsageError
from llmctl.stages.sweep.halving import part_of_budget, rungs
from llmctl.tasks.ngram.task import NgramRunConfig
from llmctl.tasks.pretraining import resolve

HYPERBAND_TABLE_1 = {
    81: [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
    27: [(27, 3), (9, 9), (3, 27), (1, 81)],
    9: [(9, 9), (3, 27), (1, 81)],
    6: [(6, 27), (2, 81)],
}
"""Li et al. 2018, Table 1, R = 81 and η = 3: (configurations, budget of each) of four brackets."""


@pytest.mark.parametrize("count", HYPERBAND_TABLE_1)
def test_as_in_the_paper(count: int):
    config = resolve("gpt", "nano", {"training": {"max_steps": 81}})
    ladder = [
        (rung.size, part_of_budget(config, rung.divisor)["max_steps"]) for rung in rungs(count, 3)
    ]
    assert ladder == HYPERBAND_TABLE_1[count]


@given(st.integers(2, 5000), st.integers(2, 10))
def test_the_closed_form(count: int, factor: int):
    """⌊n / ηⁱ⌋ configurations with 1 / ηˢ⁻ⁱ of the budget, s = ⌊log_η n⌋."""
    if count < factor:
        with pytest.raises(UsageError, match="nothing to drop"):
            rungs(count, factor)
        return
    # The logarithm of an integer power may fall a hair below the integer.
    last = math.floor(math.log(count) / math.log(factor) + 1e-12)
    made = rungs(count, factor)
    assert [(rung.size, rung.divisor) for rung in made] == [
        (math.floor(count / factor**i), factor ** (last - i)) for i in range(last + 1)
    ]
    # A rung costs no more than n / ηˢ whole trainings.
    for rung in made:
        assert rung.size / rung.divisor <= count / factor**last + 1e-9


@pytest.mark.parametrize(
    ("training", "divisor", "part"),
    [
        ({"max_steps": 100}, 3, {"max_steps": 33}),
        ({"max_steps": 100}, 1, {"max_steps": 100}),
        ({"time_limit": "6m"}, 9, {"time_limit": 40.0}),
        ({"max_steps": 9, "time_limit": 90.0}, 3, {"max_steps": 3, "time_limit": 30.0}),
        ({"epochs": 6}, 3, {"epochs": 2.0}),
    ],
)
def test_a_part_of_each_kind_of_budget(training: dict, divisor: int, part: dict[str, Any]):
    assert part_of_budget(resolve("gpt", "nano", {"training": training}), divisor) == part


def test_less_than_a_step_is_refused():
    config = resolve("gpt", "nano", {"training": {"max_steps": 8}})
    assert part_of_budget(config, 8) == {"max_steps": 1}
    with pytest.raises(ConfigError, match=r"training\.max_steps 8: .* 1/9 .* give 9 or more"):
        part_of_budget(config, 9)


def test_what_counts_has_no_budget():
    with pytest.raises(UsageError, match="--halving"):
        part_of_budget(NgramRunConfig(), 1)


@pytest.mark.parametrize("factor", [1, 0, -3])
def test_a_factor_that_keeps_all_is_refused(factor: int):
    with pytest.raises(UsageError, match=f"--factor {factor}"):
        rungs(9, factor)
