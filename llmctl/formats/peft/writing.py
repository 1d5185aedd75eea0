"""What an adapter has learned, to a folder in PEFT's layout: adapter_config.json and
adapter_model.safetensors.

PEFT adds to the layers that Hugging Face's classes have, where ours may hold several in one matrix
(queries, keys and values; gate and up). As what is added to a matrix's rows belongs to them, it is
cut exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.formats.base import Pretrained
from llmctl.models.spec import ModelSpec
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import write_tensors

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_RECORD = "llmctl.json"
"""The config.json of the model that base and adapter are together, beside an adapter of ours."""
WRAPPED, PROMPTED = "base_model.model.", "base_model."
"""What PEFT puts before the names of a model that it wraps, and of one with virtual tokens."""


@dataclass(frozen=True)
class Learned:
    """What a method has added to a model and learned."""

    fields: Mapping[str, Any]
    """The fields of adapter_config.json, ``peft_type`` among them."""
    tensors: Mapping[str, Tensor]
    """In PEFT's names, without what it puts before all of them."""
    is_prompt: bool = False
    """Whether it is virtual tokens, which are beside the model."""


def their_layers(
    ours: str, outputs: int, spec: ModelSpec, config: Any
) -> Iterator[tuple[str, Tensor, bool]]:
    """Hugging Face's layers that a linear layer of our body is: the name of each, its rows of ours,
    and whether it keeps its matrix as (inputs, outputs)."""
    # What the architecture's export does to the rows of a matrix is seen by numbering them.
    numbered = {f"{ours}.weight": torch.arange(outputs)[:, None]}
    for theirs, rows in spec.export_tensors(numbered, config).items():
        yield theirs.removesuffix(".weight"), rows.flatten(), rows.shape[0] == 1 < outputs


def write_adapter(
    folder: Path,
    learned: Learned,
    *,
    base: Pretrained,
    heads: Mapping[str, Tensor],
    task_type: str,
) -> None:
    """Write an adapter's two files.

    heads: layers that were trained whole, in Hugging Face's names. task_type: as PEFT calls it.
    """
    before = PROMPTED if learned.is_prompt else WRAPPED
    tensors = {f"{before}{name}": tensor for name, tensor in heads.items()}
    for name, tensor in learned.tensors.items():
        tensors[name if learned.is_prompt else before + name] = tensor
    fields = {
        "task_type": task_type,
        "base_model_name_or_path": str(base.path.resolve()),
        "inference_mode": True,
        **learned.fields,
    }
    if not learned.is_prompt:
        fields["modules_to_save"] = sorted({name.rpartition(".")[0] for name in heads}) or None
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    text = to_json(fields, indent=2) + "\n"
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
