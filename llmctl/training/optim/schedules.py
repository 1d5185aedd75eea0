"""Learning-rate schedules: the share of the peak rate, as a function of progress from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

AFTER_WARMUP: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, decay: 1.0 - progress,
    "cosine": lambda progress, decay: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "wsd": lambda progress, decay: min(1.0, (1.0 - progress) / decay),
    "constant": lambda progress, decay: 1.0,
}
"""What follows the warm-up; ``progress`` runs from 0 at its end to 1 at the end of training, and
``decay`` is the share of that for warm-up–stable–decay's last part (Hu et al. 2024, §4)."""


def lr_multiplier(progress: float, warmup: float, schedule: str, decay: float = 1.0) -> float:
    """The learning rate's share of its peak.

    progress: share of the training done before this step, 0 ≤ progress ≤ 1. decay: share of the
    training at whose beginning ``wsd`` starts to fall.
    """
    if progress < warmup:
        return progress / warmup
    rest = 1.0 - warmup
    return AFTER_WARMUP[schedule](min(1.0, (progress - warmup) / rest), min(1.0, decay / rest))
