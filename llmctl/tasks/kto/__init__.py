"""Ratings: answers that are good or bad, each by itself."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.entry import TaskEntry


class KtoEntry(TaskEntry):
    """Kahneman-Tversky optimisation: answers with a thumb up or down."""

    name, command = "kto", "finetune"
    purpose = "give answers like those with a thumb up"

    def task(self) -> Any:
        from llmctl.tasks.kto.task import KtoTask

        return KtoTask
