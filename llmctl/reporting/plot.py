"""Curves on common axes, drawn with letters: one glyph, and one colour, for each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

GLYPHS = "●▲■◆○△□◇"
COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue", "bright_cyan", "bright_yellow")
LOGARITHMIC = 4.0
"""How many times the lowest value the highest may be before the axis is logarithmic: else the first
losses of a training leave no room for the rest."""
TICKS_APART = 3
"""Rows between two labels of the upright axis."""


@dataclass(frozen=True)
class Series:
    """Points of a curve, from left to right; what isn't finite is left out."""

    label: str
    points: Sequence[Sequence[float]]
    """(x, y) each."""


def glyph(number: int) -> str:
    """The mark of the series of that number; beyond the shapes, letters."""
    return GLYPHS[number] if number < len(GLYPHS) else chr(ord("a") + (number - len(GLYPHS)) % 26)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def plot(
    series: Sequence[Series],
    *,
    width: int,
    height: int,
    label: Callable[[float], str] = "{:.3g}".format,
    x_label: Callable[[float], str] = "{:.0f}".format,
) -> Text:
    """The curves in ``height`` rows of ``width`` columns, and the axes' labels besides.

    A column shows a curve's mean where it has points, and is drawn through between two points.
    Where curves fall on one place, their glyphs take turns from column to column.
    """
    known = [
        [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)] for one in series
    ]
    every = [point for points in known for point in points]
    if not every:
        return Text("no losses yet", style="dim")
    right = max(x for x, _ in every) or 1.0
    low, high = min(y for _, y in every), max(y for _, y in every)
    logarithmic = low > 0 and high > LOGARITHMIC * low
    scale: Callable[[float], float] = math.log if logarithmic else lambda y: y
    bottom, span = scale(low), scale(high) - scale(low)

    def row(y: float) -> int:
        """From the top."""
        share = (scale(y) - bottom) / span if span else 0.5
        return height - 1 - round(share * (height - 1))

    cells: dict[tuple[int, int], list[int]] = {}
    for number, points in enumerate(known):
        for column, y in _columns(points, right, width).items():
            cells.setdefault((row(y), column), []).append(number)
    values = [
        (bottom + span * (height - 1 - line) / max(height - 1, 1)) if span else low
        for line in range(height)
    ]
    ticks = {
        line: label(math.exp(values[line]) if logarithmic and span else values[line])
        for line in range(height)
        if line % TICKS_APART == 0 or line == height - 1
    }
    if not span:
        ticks = {row(low): label(low)}
    margin = max(map(len, ticks.values()))
    text = Text()
    for line in range(height):
        text.append(f"{ticks.get(line, ''):>{margin}} {'┤' if line in ticks else '│'}")
        for column in range(width):
            numbers = cells.get((line, column))
            if numbers:
                number = numbers[column % len(numbers)]
                text.append(glyph(number), style=colour(number))
            else:
                text.append(" ")
        text.append("\n")
    text.append(f"{'':>{margin}} └{'─' * width}\n")
    middle, end = x_label(right / 2), x_label(right)
    below = f"{'0':<{width}}"
    for place, words in ((width // 2 - len(middle) // 2, middle), (width - len(end), end)):
        below = below[:place] + words + below[place + len(words) :]
    text.append(f"{'':>{margin}}  {below}".rstrip())
    if logarithmic:
        text.append("\n(logarithmic)", style="dim")
    return text


def _columns(points: Sequence[tuple[float, float]], right: float, width: int) -> dict[int, float]:
    """A curve's height in each column from its first point to its last."""
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        column = round(x / right * (width - 1))
        total, count = sums.get(column, (0.0, 0))
        sums[column] = (total + y, count + 1)
    means = {column: total / count for column, (total, count) in sorted(sums.items())}
    drawn = dict(means)
    places = list(means)
    for left, after in itertools.pairwise(places):
        for column in range(left + 1, after):
            share = (column - left) / (after - left)
            drawn[column] = means[left] + share * (means[after] - means[left])
    return drawn
