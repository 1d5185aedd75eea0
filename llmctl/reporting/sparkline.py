"""A curve in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """At most ``width`` bars, each the mean of its share of the values; what isn't finite is a
    space.

    >>> sparkline([1, 2, 3, 4])
    '▁▃▆█'
    """
    buckets = min(width, len(values))
    means = []
    for number in range(buckets):
        part = values[number * len(values) // buckets : (number + 1) * len(values) // buckets]
        finite = [value for value in part if math.isfinite(value)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return " " * buckets
    # Halved, so that the span of two floats is a float; a span of nothing divides by 1.
    low, high = min(known) / 2, max(known) / 2
    span = (high - low) or 1.0
    return "".join(
        BARS[round((mean / 2 - low) / span * (len(BARS) - 1))] if math.isfinite(mean) else " "
        for mean in means
    )
