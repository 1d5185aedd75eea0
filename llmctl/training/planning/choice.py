"""What a budget came to: the shapes that were timed, the chosen one, and what is expected of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmctl.reporting.units import count, duration
from llmctl.training.machine import is_busy


@dataclass(frozen=True)
class ShapeCandidate:
    """A shape with its best batch size, and what it would come to."""

    num_layers: int
    hidden_size: int
    parameters: int
    batch_size: int
    seconds_per_step: float
    steps: int
    tokens: float
    epochs: float
    predicted_loss: float


@dataclass(frozen=True)
class Choice:
    """What a budget came to."""

    budget_seconds: float
    predicted_loss: float
    predicted_range: tuple[float, float]
    """The range within which the law was wrong on a text that it was not fitted to."""
    steps: int
    tokens: float
    training_seconds: float
    calibration_seconds: float
    """All that went before the training."""
    others_cores: float
    """That other processes used while the chosen shape was timed."""
    candidates: list[ShapeCandidate]
    """The shapes that were timed, the chosen one first."""

    def document(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The candidates by size, the chosen one marked, and what is expected of it."""
        best = self.candidates[0]
        lines = ["   layers × width  parameters  batch   step, ms   steps   tokens  epochs  loss"]
        for c in sorted(self.candidates, key=lambda c: c.parameters):
            shape = f"{c.num_layers} × {c.hidden_size}"
            lines.append(
                f" {'›' if c is best else ' '} {shape:>14}  {count(c.parameters):>10}  "
                f"{c.batch_size:>5}  {1000 * c.seconds_per_step:>9.1f}  {c.steps:>6,}  "
                f"{count(c.tokens):>7}  {c.epochs:>6.1f}  {c.predicted_loss:.3f}"
            )
        low, high = self.predicted_range
        lines.append(
            f"budget {duration(self.budget_seconds)}: {best.num_layers} layers × "
            f"{best.hidden_size}, {best.batch_size} rows a step, about {self.steps:,} steps in "
            f"{duration(self.training_seconds)}; predicted loss {self.predicted_loss:.2f} "
            f"({low:.2f}–{high:.2f})"
        )
        if is_busy(self.others_cores):
            lines.append(
                f"other processes used about {self.others_cores:.1f} cores while models were "
                "timed: the budget's time is kept, but it holds fewer steps than on a quiet "
                "machine, and maybe a smaller model"
            )
        return lines
