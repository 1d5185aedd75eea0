"""Numbers as people write them: durations, counts, sizes, ages."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from llmctl.errors import UsageError

_UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DIGITS = r"(\d+(?:\.\d+)?)"
_BARE = re.compile(_DIGITS)
_DURATION = re.compile(r"\s*".join(rf"(?:{_DIGITS}\s*{unit})?" for unit in _UNIT_SECONDS))

_SIZE = re.compile(rf"{_DIGITS}\s*(?:(?:([kmgt])(i)?)?b)?", re.ASCII)


class DurationError(UsageError, ValueError):
    """Text that is no duration; a ValueError too, so that pydantic adds the field it stands in."""


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``10m``, ``1h30m``, ``2d``: each unit once, the largest first.

    Raises DurationError, naming what was given, on anything else.

    >>> parse_duration("1h30m")
    5400.0
    """
    compact = text.strip().lower()
    if _BARE.fullmatch(compact):
        seconds = float(compact)
    elif compact and (parts := _DURATION.fullmatch(compact)):
        seconds = sum(
            float(number) * unit
            for number, unit in zip(parts.groups("0"), _UNIT_SECONDS.values(), strict=True)
        )
    else:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise DurationError(f"{text!r} is not a duration; write for example 90s, 10m or 1h30m")
    return seconds


class SizeError(UsageError, ValueError):
    """Text that is no size; a ValueError too, as ``DurationError`` is."""


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``64kB``, ``256MB``, ``1.5 GB``, ``1GiB``: with decimal prefixes, or
    with binary ones where an i stands behind.

    Raises SizeError, naming what was given, on anything else.

    >>> parse_size("256MB"), parse_size("1GiB")
    (256000000, 1073741824)
    """
    parts = _SIZE.fullmatch(text.strip().lower())
    if parts is None:
        raise SizeError(f"{text!r} is not a size; write for example 64MB, 1.5GB or 0")
    number, prefix, binary = parts.groups()
    power = 0 if prefix is None else 1 + "kmgt".index(prefix)
    return int(Decimal(number) * (1024 if binary else 1000) ** power)


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
    return _scaled(number, ["", " k", " M", " G", " T", " P"], figures=3)


def size(number: float) -> str:
    """Bytes with decimal prefixes: ``512 B``, ``3.4 MB``, ``12 GB``: two figures, or whole."""
    return _scaled(number, [" B", " kB", " MB", " GB", " TB", " PB"], figures=2)


def figure(value: float | None, form: str) -> str:
    """A figure in a format such as ``.3f``; a dash where there is none, or none that is finite.

    >>> figure(0.12345, ".1%"), figure(None, ".1%")
    ('12.3%', '–')
    """
    return format(value, form) if value is not None and math.isfinite(value) else "–"


def short(value: float) -> str:
    """A number to ten figures in the fewest letters, as people write learning rates.

    >>> short(0.0003), short(0.00025), short(0.05), short(200.0), short(12.5)
    ('3e-4', '2.5e-4', '0.05', '200', '12.5')
    """
    plain = f"{value:.10g}"
    if not math.isfinite(value):
        return plain
    sign, digits, exponent = Decimal(plain).normalize().as_tuple()
    assert isinstance(exponent, int)
    mantissa = "".join(map(str, digits[:1])) + ("." if len(digits) > 1 else "")
    mantissa += "".join(map(str, digits[1:]))
    power = exponent + len(digits) - 1
    scientific = f"{'-' * sign}{mantissa}e{power}"
    return scientific if "e" in plain or (power < 0 and len(scientific) < len(plain)) else plain


def _scaled(number: float, units: list[str], figures: int) -> str:
    value, place = float(number), 0
    if not math.isfinite(value):
        return "?"
    # What would round to 1000 is 1 of the next unit.
    while abs(value) >= 999.5 and place < len(units) - 1:
        value, place = value / 1000.0, place + 1
    digits = figures - 1 if place else 0
    while digits and abs(value) >= 10.0 ** (figures - digits) - 0.5 * 10.0**-digits:
        digits -= 1
    return f"{value:.{digits}f}{units[place]}"


def age(seconds: float) -> str:
    """``just now``, ``5 min ago``, ``3 h ago``, ``2 d ago``."""
    if not math.isfinite(seconds):
        return "?"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} ago"
    return "just now"
