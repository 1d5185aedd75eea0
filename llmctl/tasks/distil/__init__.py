"""Distillation: a smaller model learns what a larger one answers."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.entry import TaskEntry


class DistilEntry(TaskEntry):
    """Distillation: a smaller model learns what a larger one answers. What comes of it does what
    its teacher does."""

    name, command = "distil", "finetune"
    purpose = "answer as a larger model does"

    def task(self) -> Any:
        from llmctl.tasks.distil.task import DistilTask

        return DistilTask
