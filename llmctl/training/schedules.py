"""Learning-rate schedules: the share of the peak rate, as a function of progress from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

AFTER_WARMUP: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}
"""What follows the warm-up; ``progress`` runs from 0 at its end to 1 at the end of training."""


def share_of_peak(progress: float, warmup: float, schedule: str) -> float:
    """The learning rate's share of its peak.

    progress: share of the training done before this step, 0 ≤ progress ≤ 1.
    """
    if progress < warmup:
        return progress / warmup
    return AFTER_WARMUP[schedule](min(1.0, (progress - warmup) / (1.0 - warmup)))
