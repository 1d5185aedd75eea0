"""Wilson's interval of a share (Wilson 1927): the shares from which a score test would not tell
what was seen apart.

Unlike a bootstrap's it has a width where all or none were right.
"""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(right: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a share seen as ``right`` of ``total``, where a tie may count half.

    Raises ValueError if there are none, or more right than there are.

    >>> [round(bound, 3) for bound in wilson_interval(0, 100)]
    [0.0, 0.037]
    """
    if not 0 <= right <= total or not total:
        raise ValueError(f"{right} right of {total}")
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    # Exactly 0 and 1 at the ends, where rounding would leave a little more or less.
    return (
        max(0.0, middle - half) if right else 0.0,
        min(1.0, middle + half) if right < total else 1.0,
    )
