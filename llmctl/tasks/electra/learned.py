"""What a discriminator has learned, in words: its figures beside calling every token original."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmctl.tasks.learned import CONTEXT, HELPS, LEARNED, LITTLE, NOTHING

MIN_SHARE_GAINED, LITTLE_GAINED = 0.02, 0.15
"""Shares of the entropy of "replaced or not" that a discriminator must have taken away to have
learned something, and more than a little."""


def describe_detection(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What to add to a pretraining's summary; nothing where there was no look at other text."""
    values = summary.get("validation", {})
    try:
        loss, accuracy, original = (
            values[f] for f in ("detection_loss", "detection_accuracy", "original_share")
        )
    except KeyError:
        return {}
    chance = entropy_of_share(original)
    gained = 1 - loss / chance if chance else 0.0
    figures = (
        f"replaced tokens are told with {accuracy:.1%} right and a loss of {loss:.3f} nats; "
        f"{original:.1%} and {chance:.3f} by calling every token the text's own"
    )
    if gained < MIN_SHARE_GAINED:
        how, said = NOTHING, f"has not learned from context yet: {figures}; {HELPS}"
    elif gained < LITTLE_GAINED:
        how, said = LITTLE, f"has learned little from context yet: {figures}; {HELPS}"
    else:
        how, said = CONTEXT, f"has learned from context: {figures}"
    return {LEARNED: {"from": how, "says": said, "detection_entropy": chance}}


def entropy_of_share(share: float) -> float:
    """The entropy of a yes or no, in nats: the least loss of who knows its share alone.

    >>> round(entropy_of_share(0.5), 4)
    0.6931
    """
    parts = (share, 1 - share)
    return -sum(part * math.log(part) for part in parts if part > 0)
