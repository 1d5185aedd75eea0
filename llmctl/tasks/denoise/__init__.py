"""Denoising: texts that something was done to, which an encoder–decoder restores."""

from __future__ import annotations

from typing import Any

from llmctl.tasks.entry import TaskEntry


class DenoiseEntry(TaskEntry):
    """Denoising: texts that something was done to, which an encoder–decoder restores."""

    name, command = "denoise", "pretrain"
    purpose = "fill in what was taken out of texts"

    def task(self) -> Any:
        from llmctl.tasks.denoise.task import DenoisingPretraining

        return DenoisingPretraining
