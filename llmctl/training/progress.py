"""How far a training is: the part of its state that is numbers, as checkpoints keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from llmctl.parsing import first_fault


@dataclass
class Progress:
    """The part of training's state that is numbers; kept in checkpoints, where a field with an
    alias has that for a name."""

    step: int = 0
    elapsed: float = 0.0
    """Seconds of wall clock, over all sessions."""
    tokens: int = 0
    window: dict[str, list[float]] = field(default_factory=dict)
    """Sums and counts since the last logged step."""
    best: float = math.inf
    """Lowest validation criterion so far (the loss, or what ``validate`` calls ``criterion``)."""
    best_step: int = 0
    """The step that the lowest criterion was measured at."""
    lowest_loss: float = math.inf
    """The lowest loss of the validations so far."""
    improved_step: int = 0
    """Step of the last validation with a new lowest criterion or loss, for early stopping."""
    grad_norm_ema: Annotated[float, Field(alias="usual_norm")] = 0.0
    """Running mean of the gradients' norms before clipping, to tell a spike by."""
    validation_due: Annotated[bool, Field(alias="look_due")] = False
    """Whether the validation at this step is still to come, as a stop cut it short."""
    ended: bool = False
    """Whether training came to its end, which may be before its last step."""
    warmed_up_again: float | None = None
    """Share of the training at which the learning rate began to rise once more."""


_UNSET = ("best", "lowest_loss")
"""Fields that are infinite before the first validation; JSON has no such number, and says null."""
_SOUND = TypeAdapter(Progress)


def state_of(progress: Progress) -> dict[str, Any]:
    """The progress as a checkpoint keeps it."""
    return _SOUND.dump_python(progress, by_alias=True)


def progress_of(state: Mapping[str, Any]) -> Progress:
    """The progress that a checkpoint's state tells. Raises ValueError for one that is none."""
    values = dict(state)  # what else a state has is passed over
    values |= {name: math.inf for name in _UNSET if values.get(name, 0) is None}
    if isinstance(window := values.get("window"), dict):
        values["window"] = {
            name: [math.nan if value is None else value for value in pair]
            if isinstance(pair, list)
            else pair
            for name, pair in window.items()
        }
    try:
        progress = _SOUND.validate_python(values)
    except ValidationError as error:
        raise ValueError(f"its {first_fault(error)}") from None
    if any(len(pair) != 2 for pair in progress.window.values()):
        raise ValueError("its window has no sums and counts")
    counts = (progress.step, progress.tokens, progress.best_step, progress.improved_step)
    if min(*counts, progress.elapsed) < 0 or not math.isfinite(progress.elapsed):
        raise ValueError("its numbers of steps, tokens or seconds are none")
    return progress
