"""Rewards that can be checked: answers are tried, and what is rewarded becomes likelier."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.entry import TaskEntry


class GrpoEntry(TaskEntry):
    """Group-relative policy optimisation by rewards that can be checked."""

    name, command = "grpo", "finetune"
    purpose = "answer so that a check rewards it"

    def task(self) -> Any:
        from llmctl.tasks.grpo.task import GrpoTask

        return GrpoTask
