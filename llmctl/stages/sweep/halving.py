"""Successive halving: many configurations train a little, the best of them more.

Jamieson & Talwalkar 2016, Algorithm 1, with the arithmetic of Li et al. 2018 (Hyperband, Algorithm
1): rung i of s + 1 has ⌊n / ηⁱ⌋ configurations with 1 / ηˢ⁻ⁱ of the whole budget each, where
s = ⌊log_η n⌋; the best of a rung go on to the next. Every rung but for rounding costs n / ηˢ whole
trainings, so all of them cost (s + 1) · n / ηˢ where the whole grid costs n.

A rung trains its configurations anew, with the learning rate decayed to its end within the rung's
own budget: the loss in the middle of a schedule says little (a high rate hides what was learned
until it falls; Hägele et al. 2024), so going on with one training would compare what is not
comparable, and a training whose schedule was stretched half-way is none that a plain command
repeats. The last rung's runs are those of the whole grid, to the bit. The price is that what
survivors did in earlier rungs is done again: at most η / (η - 1) of the cost of going on, half as
much again with η = 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmctl.config import Config
from llmctl.errors import ConfigError, UsageError

DEFAULT_FACTOR = 3
"""The factor η; Li et al. 2018 recommend 3 or 4, and find little difference."""
BUDGETS = ("max_steps", "time_limit", "epochs")


@dataclass(frozen=True)
class Rung:
    """How many configurations train, each with the whole budget divided by ``divisor``."""

    size: int
    divisor: int


def rungs(count: int, factor: int) -> list[Rung]:
    """The rungs for so many configurations, from the smallest budget to the whole one.

    >>> [(rung.size, rung.divisor) for rung in rungs(9, 3)]
    [(9, 9), (3, 3), (1, 1)]
    """
    if factor < 2:
        raise UsageError(f"--factor {factor}: a rung keeps 1 in so many; use 2 or more")
    sizes = [count]
    while sizes[-1] >= factor:
        sizes.append(sizes[-1] // factor)
    if len(sizes) < 2:
        raise UsageError(
            f"--halving by --factor {factor} has nothing to drop among {count} "
            f"configuration{'s' * (count != 1)}; give --grid more values, or leave out --halving"
        )
    return [Rung(size, factor ** (len(sizes) - 1 - number)) for number, size in enumerate(sizes)]


def part_of_budget(config: Config, divisor: int) -> dict[str, Any]:
    """What makes a configuration train with a part of its budget: fields of ``training``.

    The budget is what is given of ``max_steps`` and ``time_limit``, else ``epochs``. Raises
    UsageError for what has none, ConfigError if less than a step is left.
    """
    training = getattr(config, "training", None)
    if training is None:
        raise UsageError("--halving divides a training's budget, and --arch ngram has none")
    limits = {name: getattr(training, name) for name in BUDGETS[:2]}
    whole = {k: v for k, v in limits.items() if v is not None} or {"epochs": training.epochs}
    if divisor == 1:
        return whole
    if whole.get("max_steps", divisor) < divisor:
        raise ConfigError(
            f"training.max_steps {whole['max_steps']}: --halving would begin with 1/{divisor} "
            f"of it, less than one step; give {divisor} or more, or fewer values to --grid"
        )
    return {
        name: value // divisor if name == "max_steps" else value / divisor
        for name, value in whole.items()
    }
