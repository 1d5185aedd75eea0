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
    low, high = min(known), max(known)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BARS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means
    )
