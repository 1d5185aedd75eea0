"""Instructions and conversations, for a model that answers in a chat."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.entry import TaskEntry


class InstructEntry(TaskEntry):
    """Instructions and conversations, for a model that answers in a chat."""

    name, command = "instruct", "finetune"
    purpose = "answer in a chat"

    def task(self) -> Any:
        from llmctl.tasks.instruct.task import InstructTask

        return InstructTask
