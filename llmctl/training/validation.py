"""Losses and metrics over batches that are not trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmctl.training.batches import LossParts, Objective, TensorBatch
from llmctl.training.distributed.processes import SINGLE_PROCESS, World
from llmctl.training.measured import Sums, accumulate, means, summed_over
from llmctl.training.precision import autocast


class ValidationInterrupted(Exception):
    """A validation was cut short by a stop."""


@torch.no_grad()
def evaluate(
    objective: Objective,
    batches: Callable[[int], TensorBatch],
    count: int,
    *,
    device: torch.device,
    precision: str = "fp32",
    world: World = SINGLE_PROCESS,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Losses and metrics over some batches, each a sum over all divided by its count.

    ``loss`` is the weighted sum of the losses. world: takes the batches in turn. Raises
    ValidationInterrupted where ``should_stop`` says so before all batches are done; processes that
    do it together go through with it.
    """
    objective.eval()
    sums: Sums = {}
    losses: dict[str, float] = {}
    # Kernels for a few batches of other shapes would take longer to make than they save.
    with torch.compiler.set_stance("force_eager"):
        for number in range(world.rank, count + -count % world.size, world.size):
            if world.size == 1 and should_stop():
                raise ValidationInterrupted
            # Those who have none left go through one again, as sharded weights need everyone.
            weight = float(number < count)
            with autocast(device, precision):
                parts: LossParts = objective(batches(min(number, count - 1)).to(device))
            losses |= {name: part.weight for name, part in parts.losses.items()}
            ratios = {**parts.losses, **parts.metrics}.items()
            accumulate(sums, {n: (float(r.total) * weight, r.count * weight) for n, r in ratios})
    figures = means(summed_over(world, sums)[0])
    loss = sum(weight * figures[name] for name, weight in losses.items() if name in figures)
    return {"loss": loss, **figures}
