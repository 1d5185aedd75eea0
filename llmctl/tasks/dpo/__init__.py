"""Preferences: of two answers to a prompt the better one."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.entry import TaskEntry


class DpoEntry(TaskEntry):
    """Direct preference optimisation: of two answers to a prompt the better one."""

    name, command = "dpo", "finetune"
    purpose = "prefer the better of two answers"

    def task(self) -> Any:
        from llmctl.tasks.dpo.task import DpoTask

        return DpoTask
