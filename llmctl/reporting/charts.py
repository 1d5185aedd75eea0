"""Curves with bands as a picture in a file, by matplotlib, which the extra ``plot`` brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import UsageError

KINDS = (".svg", ".pdf", ".png")
MARKERS = "osD^vP*Xd<>h"


@dataclass(frozen=True)
class Band:
    """A curve over the same places as others: what was measured, and its interval."""

    label: str
    places: Sequence[int]
    """Which of the axis' places its points stand at."""
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def check_chart(path: Path) -> None:
    """Raises UsageError for a kind of picture that isn't written, and where matplotlib is
    missing."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--plot {path}: write a name that ends in {', '.join(KINDS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib; install it with: pip install 'llmctl[plot]'"
        ) from None


def save_chart(
    path: Path, bands: Sequence[Band], names: Sequence[str], *, title: str, x: str, y: str
) -> None:
    """Write a picture of curves. names: of the places on the axis, which are evenly apart."""
    check_chart(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # The same picture of the same figures, to the byte.
    with rc_context({"svg.hashsalt": "llmctl"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for number, band in enumerate(bands):
            marker = MARKERS[number % len(MARKERS)]
            (line,) = axes.plot(band.places, band.values, marker=marker, label=band.label)
            axes.fill_between(
                band.places, band.lows, band.highs, alpha=0.12, color=line.get_color()
            )
        axes.set_xticks(range(len(names)), names)
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, metadata=metadata.get(path.suffix.lower()))
