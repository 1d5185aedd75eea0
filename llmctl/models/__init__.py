"""The architectures: one file each, from its configuration to its Hugging Face names.

An entry of ``ARCHITECTURES`` is all that a new one needs outside its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from llmctl.config import Config
from llmctl.models.bert import PRESETS, Bert, BertConfig, from_hugging_face, to_hugging_face


@dataclass(frozen=True)
class Architecture:
    """How to build one kind of model and how others name its parts."""

    config: type[Config]
    model: Callable[[Any], nn.Module]
    presets: Mapping[str, Mapping[str, Any]]
    to_hugging_face: Callable[[Any], dict[str, Any]]
    """Our configuration as the fields of a config.json."""
    from_hugging_face: Callable[[Mapping[str, Any]], Any]


ARCHITECTURES = {
    "bert": Architecture(BertConfig, Bert, PRESETS, to_hugging_face, from_hugging_face),
}
