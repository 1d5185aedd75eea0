"""What training and validation measure: sums with their counts, tokens and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from llmctl.training.distributed.processes import World

Sums = dict[str, list[float]]
"""A sum and its count, by name: a mean of means would weigh tokens wrongly."""


def accumulate(sums: Sums, more: Mapping[str, Sequence[float]]) -> None:
    """Add sums and counts to those there are."""
    for name, (total, count) in more.items():
        entry = sums.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += count


def means(sums: Sums) -> dict[str, float]:
    """Each sum divided by its count; what was never counted is left out."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def summed_over(world: World, sums: Sums, *others: float) -> tuple[Sums, list[float]]:
    """Sums, and other numbers, added up over all processes, which must all call it."""
    flat = world.all_reduce_sum([*others, *chain.from_iterable(sums.values())])
    numbers, flat = flat[: len(others)], flat[len(others) :]
    pairs = map(list, zip(flat[::2], flat[1::2], strict=True))
    return dict(zip(sums, pairs, strict=True)), numbers


class Speed:
    """Tokens and seconds of some steps; validation and checkpoints are not counted."""

    def __init__(self) -> None:
        self._tokens, self._slots, self._seconds = 0, 0, 0.0

    def add(self, tokens: int, slots: int, seconds: float) -> None:
        """Count a step. slots: tokens with padding."""
        self._tokens += tokens
        self._slots += slots
        self._seconds += seconds

    @property
    def filled(self) -> float:
        """The share of the slots that tokens fill."""
        return self._tokens / self._slots

    def figures(self, flops_per_slot: float | None, peak_flops: float) -> dict[str, float]:
        """Tokens a second and, where operations were counted, the share of the peak rate."""
        figures = {"tokens_per_second": self._tokens / self._seconds}
        if flops_per_slot is not None:
            done = flops_per_slot * self._slots / self._seconds
            figures["utilisation"] = done / peak_flops
        return figures
