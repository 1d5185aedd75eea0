"""Fields of configurations and their values, as tables and names show them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from llmctl.config import ALIASES
from llmctl.reporting.units import short


def short_fields(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each field's name, as people type it; the whole name where two share it.

    >>> short_fields(["training.learning_rate", "dropout", "lora.dropout"])
    {'training.learning_rate': 'lr', 'dropout': 'dropout', 'lora.dropout': 'lora.dropout'}
    """
    typed = {field: alias for alias, field in ALIASES.items()}
    leaves = {field: typed.get(field, field).rpartition(".")[2] for field in fields}
    shared = Counter(leaves.values())
    return {field: leaf if shared[leaf] == 1 else field for field, leaf in leaves.items()}


def short_value(value: Any) -> str:
    """``3e-4``, ``16``, ``gpt``, ``true``, ``none``."""
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, float):
        return short(value)
    return json.dumps(value, ensure_ascii=False, default=str)
