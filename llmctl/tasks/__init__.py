"""What a model is trained for: one folder each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.tasks.pretraining import Pretraining


def _masked_lm() -> type[Pretraining[Any, Any]]:
    from llmctl.tasks.masked_lm.task import MaskedPretraining

    return MaskedPretraining


def _causal_lm() -> type[Pretraining[Any, Any]]:
    from llmctl.tasks.causal_lm.task import CausalPretraining

    return CausalPretraining


PRETRAINING: dict[str, Callable[[], type[Pretraining[Any, Any]]]] = {
    "masked_lm": _masked_lm,
    "causal_lm": _causal_lm,
}
"""By the name that an architecture gives its task; each is loaded where it is asked for."""
