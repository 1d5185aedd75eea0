"""Every method with every task: a diagonal, and all of it with LLMCTL_WHOLE_GRID=1."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from llmctl.errors import LlmctlError
from llmctl.tasks import tasks_of
from llmctl.training import adapters
from tests.adapter_cases import CASES, METHODS, options_of
from tests.adapter_grid import Grid, refusal

Cell = tuple[str, str, str]


def diagonal() -> list[Cell]:
    """Two methods for each task that can be."""
    methods = list(METHODS)
    cells: list[Cell] = []
    cases = [(name, case) for name, case in CASES.items() if case.in_diagonal]
    for number, (name, case) in enumerate(cases):
        base = case.bases[0]
        suited = [method for method in methods if refusal(method, name, base) is None]
        for place in (number, number + 3 + number // len(methods)):
            cells.append((suited[place % len(suited)], name, base))
    return cells


def whole() -> list[Cell]:
    return [(m, name, base) for name, case in CASES.items() for m in METHODS for base in case.bases]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid(tmp_path_factory.mktemp("grid"))


@pytest.mark.parametrize(
    ("method", "name", "base"), whole() if os.environ.get("LLMCTL_WHOLE_GRID") else diagonal()
)
def test_a_method_goes_with_a_task(grid: Grid, method: str, name: str, base: str) -> None:
    sentence = refusal(method, name, base)
    if sentence is None:
        grid.try_cell(method, name, base)
        return
    with pytest.raises(LlmctlError, match=sentence):
        grid.try_cell(method, name, base)


def test_the_diagonal_has_all_methods_and_tasks_at_least_twice() -> None:
    cells = diagonal()
    assert len({*cells}) == len(cells)
    cases = {name for name, case in CASES.items() if case.in_diagonal}
    for counted, wanted in ((0, METHODS.keys()), (1, cases)):
        counts = Counter(cell[counted] for cell in cells)
        assert counts.keys() == wanted
        assert min(counts.values()) >= 2
    assert {case.task for case in CASES.values()} == tasks_of("finetune").keys()
    assert {options_of(name)["method"] for name in METHODS} == adapters.METHODS.keys()
