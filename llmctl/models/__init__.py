"""The architectures: one file each, from its configuration to its Hugging Face names.

An entry of ``ARCHITECTURES`` is all that a new one needs outside its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from llmctl.config import Config
from llmctl.models import bert, gpt, llama, nanochat


@dataclass(frozen=True)
class Architecture:
    """How to build one kind of model and how others name its parts."""

    name: str
    """As ``--arch`` takes it."""
    objective: str
    """What pretraining teaches it, as llmctl/objectives knows it."""
    config: type[Config]
    model: Callable[..., nn.Module]
    """From the configuration; a decoder's takes ``cross_attention`` too."""
    presets: Mapping[str, Mapping[str, Any]]
    to_hugging_face: Callable[[Any], dict[str, Any]]
    """Our configuration as the fields of a config.json."""
    from_hugging_face: Callable[[Mapping[str, Any]], Any]
    export_tensors: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    """The body's state dict in Hugging Face's names, …"""
    import_tensors: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    """… and back."""
    classes: Mapping[str, str]
    """What Hugging Face calls its classes begin with, by config.json's model_type."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of llmctl/training/config.py that its fresh weights ask for."""


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "bert",
            "masked_lm",
            bert.BertConfig,
            bert.Bert,
            bert.PRESETS,
            bert.to_hugging_face,
            bert.from_hugging_face,
            bert.export_tensors,
            bert.import_tensors,
            {"bert": "Bert"},
        ),
        Architecture(
            "gpt",
            "causal_lm",
            gpt.GptConfig,
            gpt.Gpt,
            gpt.PRESETS,
            gpt.to_hugging_face,
            gpt.from_hugging_face,
            gpt.export_tensors,
            gpt.import_tensors,
            {"gpt2": "GPT2"},
        ),
        Architecture(
            "llama",
            "causal_lm",
            llama.LlamaConfig,
            llama.Llama,
            llama.PRESETS,
            llama.to_hugging_face,
            llama.from_hugging_face,
            llama.export_tensors,
            llama.import_tensors,
            {"llama": "Llama", "qwen3": "Qwen3"},
        ),
        Architecture(
            "nanochat",
            "causal_lm",
            nanochat.NanoChatConfig,
            nanochat.NanoChat,
            nanochat.PRESETS,
            nanochat.to_hugging_face,
            nanochat.from_hugging_face,
            nanochat.export_tensors,
            nanochat.import_tensors,
            {"nanochat": "NanoChat"},
            # Embeddings start ten to fifty times as large as elsewhere.
            {"embedding_rate": 10.0},
        ),
    )
}

BY_MODEL_TYPE = {
    model_type: architecture
    for architecture in ARCHITECTURES.values()
    for model_type in architecture.classes
}
"""Architectures by config.json's model_type."""
