"""How a stage tells what it does; the command line draws it, tests and scripts may ignore it."""

from __future__ import annotations

from typing import Any


class Reporter:
    """Takes what a stage has to say. This one keeps silent."""

    def note(self, text: str) -> None:
        """Something chosen or noticed."""

    def progress(self, task: str, done: float, total: float | None, detail: str = "") -> None:
        """How far a task is; it is over when ``done`` reaches ``total``."""

    def metrics(
        self,
        kind: str,
        step: int,
        total: int | None,
        values: dict[str, Any],
        *,
        seconds: float | None = None,
    ) -> None:
        """A record of a training. total: its steps, if they are limited; seconds: its time, if that
        is."""
