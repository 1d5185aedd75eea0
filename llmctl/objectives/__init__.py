"""What a model is trained to do: one file for each objective.

An objective is a module that owns the body and its head and has two functions: ``collate``,
from samples to a batch, and ``loss``, from a batch to sums and counts. Those that pretrain have
an entry in ``PRETRAINING``.
"""

from __future__ import annotations

from typing import Any

from llmctl.objectives.causal_pretraining import CausalPretraining
from llmctl.objectives.masked_pretraining import MaskedPretraining
from llmctl.objectives.pretraining import Pretraining

PRETRAINING: dict[str, type[Pretraining[Any, Any]]] = {
    "masked_lm": MaskedPretraining,
    "causal_lm": CausalPretraining,
}
"""By the name that an architecture gives its objective."""
