"""Several processes divide a stream of items, here as threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.training.distributed.processes import World


class Group:
    """What lets threads be the processes of a world."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=10)


class Member(World):
    """One of them."""

    def __init__(self, rank: int, size: int, group: Group) -> None:
        super().__init__(rank, size, rank, size)
        object.__setattr__(self, "group", group)

    def all_gather_json(self, value: Any) -> list[Any]:
        group: Group = self.group  # type: ignore[attr-defined]
        group.values[self.rank] = value
        group.barrier.wait()
        found = list(group.values)
        group.barrier.wait()
        return found


def divide(count: int, size: int, block: int, bad: int | None) -> list[tuple[list[int], int, str]]:
    """What each process gets, how many items it answered itself, and what it ended with."""
    group = Group(size)

    def run(rank: int) -> tuple[list[int], int, str]:
        own = 0

        def answer(items: Iterable[int], first: int) -> Iterator[int]:
            nonlocal own
            for number, item in enumerate(items, first):
                assert item == 10 * number
                if number == bad:
                    raise InputError(f"item {number} is bad")
                own += 1
                yield -item

        got: list[int] = []
        try:
            world = Member(rank, size, group)
            got.extend(
                world.map_sharded((10 * n for n in range(count)), answer, block=block, kind=int)
            )
        except InputError as error:
            return got, own, str(error)
        return got, own, ""

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


@given(count=st.integers(0, 30), size=st.integers(1, 4), block=st.integers(1, 7))
def test_all_get_every_answer_in_order(count: int, size: int, block: int):
    results = divide(count, size, block, None)
    for got, _, ended in results:
        assert got == [-10 * number for number in range(count)]
        assert not ended
    shares = [own for _, own, _ in results]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= block


@pytest.mark.parametrize("bad", [0, 5, 11])
def test_a_failure_is_told_by_all_behind_the_answers_before_it(bad: int):
    for got, _, ended in divide(12, 3, 2, bad):
        assert got == [-10 * number for number in range(bad)]
        assert ended == f"item {bad} is bad"
