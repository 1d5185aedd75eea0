"""Numbers as people write them: durations, counts, sizes, ages."""

from __future__ import annotations

import math
import re

_UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)([dhms]))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``10m``, ``1h30m``, ``2d``. Raises ValueError on nonsense.

    >>> parse_duration("1h30m")
    5400.0
    """
    compact = text.strip().lower().replace(" ", "")
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        return float(compact)
    if not _DURATION.fullmatch(compact):
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 10m or 1h30m")
    return sum(float(n) * _UNIT_SECONDS[unit] for n, unit in _DURATION_PART.findall(compact))


def duration(seconds: float) -> str:
    """``0.4 s``, ``3 min 12 s``, ``2 h 05 min``, ``3 d 4 h``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def count(number: float) -> str:
    """``950``, ``12.3 k``, ``4.56 M``, ``7.89 G``: three figures."""
    return _scaled(number, 1000.0, ["", " k", " M", " G", " T", " P"])


def size(number: float) -> str:
    """Bytes with decimal prefixes: ``512 B``, ``3.40 MB``."""
    return _scaled(number, 1000.0, [" B", " kB", " MB", " GB", " TB", " PB"])


def _scaled(number: float, step: float, units: list[str]) -> str:
    value, place = float(number), 0
    while abs(value) >= step * 0.9995 and place < len(units) - 1:
        value, place = value / step, place + 1
    if place == 0:
        return f"{value:.0f}{units[0]}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}{units[place]}"


def age(seconds: float) -> str:
    """``just now``, ``5 min ago``, ``3 h ago``, ``2 d ago``."""
    if seconds < 60:
        return "just now"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} ago"
    raise AssertionError("unreachable")
