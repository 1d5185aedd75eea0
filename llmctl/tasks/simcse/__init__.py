"""Unsupervised contrastive learning: a text's two readings are nearer than those of others."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.entry import TaskEntry


class SimcseEntry(TaskEntry):
    """Unsupervised contrastive learning: a text's two readings are nearer than those of others."""

    name, command = "simcse", "pretrain"
    purpose = "make vectors of texts from plain text, by dropout"
    backbones = ("encoder", "decoder")
    makes = "embed"

    def task(self) -> Any:
        from llmctl.tasks.simcse.task import SimcsePretraining

        return SimcsePretraining
