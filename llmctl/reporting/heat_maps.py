"""Figures as colours, for pages: a table whose cells are coloured, and a picture for each of many
tables of weights.

Everything is in the page itself: colours by style, pictures as SVG.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmctl.reporting.visible import visible

STRONGEST = 0.6
"""How opaque the largest figure's colour is, on which text can still be read."""
SHADES = 10
"""Shades of a picture; what is below half of the faintest is left out."""
MOST_PIXELS = 200_000
"""Cells that the pictures of a page have together at most."""


@dataclass(frozen=True)
class HeatMap:
    """A table of figures: green above 0, red below, the more the larger."""

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    """For each row one for each column."""
    shown: Sequence[Sequence[str]]
    """What is written in the cells."""
    largest: float | None = None
    """The figure with the strongest colour; None: the largest that there is."""


@dataclass(frozen=True)
class WeightMaps:
    """Many square tables of weights from 0 to 1, a picture each: who looks (down) at whom
    (across)."""

    title: str
    tokens: Sequence[str]
    groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[Sequence[float]]]]]]
    """Names with pictures, each with a name and its rows of weights."""


def html_of(found: HeatMap | WeightMaps) -> str:
    """A map as HTML."""
    title = f"<h2>{_text(found.title)}</h2>"
    return title + (_table(found) if isinstance(found, HeatMap) else "".join(_pictures(found)))


def _table(found: HeatMap) -> str:
    sizes = [abs(value) for row in found.values for value in row]
    largest = found.largest or max(sizes, default=0.0) or 1.0
    heads = "".join(f"<th>{_text(name)}</th>" for name in ("", *found.columns))
    rows = "".join(
        f"<tr><td>{_text(name)}</td>"
        + "".join(
            _cell(value, shown, largest) for value, shown in zip(values, written, strict=True)
        )
        + "</tr>"
        for name, values, written in zip(found.rows, found.values, found.shown, strict=True)
    )
    return f'<table class="heat"><tr>{heads}</tr>{rows}</table>'


def _cell(value: float, shown: str, largest: float) -> str:
    side, strength = "for" if value > 0 else "against", min(1.0, abs(value) / largest)
    return (
        f'<td title="{value:+.4f}" style="background: rgb(var(--{side}) / '
        f'{STRONGEST * strength:.2f})">{_text(shown)}</td>'
    )


def _pictures(found: WeightMaps) -> Iterator[str]:
    T, count = len(found.tokens), sum(len(pictures) for _, pictures in found.groups)
    if T * T * count > MOST_PIXELS:
        yield (
            f"<p>{count:,} pictures of {T} tokens each would make a page too large to open; "
            "shorten the text to see them.</p>"
        )
        return
    numbered = " ".join(f"{n}&nbsp;{_text(token)}" for n, token in enumerate(found.tokens, 1))
    yield f'<p dir="auto">{numbered}</p>'
    for name, pictures in found.groups:
        yield f'<h3>{_text(name)}</h3><div class="maps">'
        for caption, weights in pictures:
            yield f"<figure>{_picture(weights, caption)}<figcaption>{_text(caption)}</figcaption>"
            yield "</figure>"
        yield "</div>"


def _picture(weights: Sequence[Sequence[float]], caption: str) -> str:
    """A square for each weight, those of a shade together."""
    shades: dict[int, list[str]] = {}
    for y, row in enumerate(weights):
        for x, weight in enumerate(row):
            if level := round(SHADES * weight):
                shades.setdefault(level, []).append(f"M{x} {y}h1v1h-1z")
    size = len(weights)
    paths = "".join(
        f'<path fill-opacity="{level / SHADES:g}" d="{"".join(shades[level])}"/>'
        for level in sorted(shades)
    )
    return (
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{_text(caption)}">{paths}</svg>'
    )


def _text(text: str) -> str:
    return html.escape(visible(text))
