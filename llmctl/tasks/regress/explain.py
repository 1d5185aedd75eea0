"""Why a text has a number: the number itself.

R rows, C = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llmctl.tasks.classify.explain import ClassExplainer


class NumberExplainer(ClassExplainer):
    """A regression whose numbers are explained."""

    takes = ()

    def build(self) -> Any:
        return self.folder.network()

    def answered(
        self, logits_C: Tensor
    ) -> tuple[str, Callable[[Tensor], Tensor], dict[str, object]]:
        """The number."""
        value = float(logits_C)
        return f"{value:.4g}", lambda logits_RC: logits_RC.reshape(-1), {"value": value}
