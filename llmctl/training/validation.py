"""Losses and metrics over batches that are not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch

from llmctl.training.batches import LossParts, Objective, TensorBatch
from llmctl.training.distributed.processes import ALONE, World
from llmctl.training.precision import autocast


class LookStopped(Exception):
    """A validation was cut short by a stop."""


@torch.no_grad()
def evaluate(
    objective: Objective,
    batches: Callable[[int], TensorBatch],
    count: int,
    *,
    device: torch.device,
    precision: str = "fp32",
    world: World = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Losses and metrics over some batches, each a sum over all divided by its count.

    ``loss`` is the sum of the losses. world: takes the batches in turn. Raises
    LookStopped where ``should_stop`` says so before all batches are done; processes that do it
    together go through with it.
    """
    objective.eval()
    sums: dict[str, list[float]] = {}
    losses: set[str] = set()
    # Kernels for a few batches of other shapes would take longer to make than they save.
    with torch.compiler.set_stance("force_eager"):
        for number in range(world.rank, count + -count % world.size, world.size):
            if world.size == 1 and should_stop():
                raise LookStopped
            # Those who have none left go through one again, as sharded weights need everyone.
            weight = float(number < count)
            with autocast(device, precision):
                parts: LossParts = objective(batches(min(number, count - 1)).to(device))
            losses.update(parts.losses)
            for name, ratio in {**parts.losses, **parts.metrics}.items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(ratio.total) * weight
                entry[1] += ratio.count * weight
    totals = world.total(list(chain.from_iterable(sums.values())))
    means = {name: s / n for name, (s, n) in zip(sums, batched_pairs(totals), strict=True) if n}
    return {"loss": sum(means[name] for name in losses if name in means), **means}


def batched_pairs(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Each two that follow one another."""
    return zip(values[::2], values[1::2], strict=True)
