"""How a stage tells what it does; the command line draws it, tests and scripts may ignore it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """Something that happened at a step: a logged step, a validation, a checkpoint, the end."""

    kind: str
    """``train``, ``validation``, ``checkpoint``, ``skipped``, ``stopped`` or ``finished``."""
    step: int
    values: dict[str, Any] = field(default_factory=dict)


class Reporter:
    """Takes what a stage has to say. This one keeps silent."""

    def note(self, text: str) -> None:
        """Something chosen or noticed."""

    def progress(self, task: str, done: float, total: float | None, detail: str = "") -> None:
        """How far a task is; it is over when ``done`` reaches ``total``."""

    def metrics(self, record: Record, total: int | None, seconds: float | None = None) -> None:
        """A record of a training. total: its steps, if they are limited; seconds: its time, if that
        is."""
