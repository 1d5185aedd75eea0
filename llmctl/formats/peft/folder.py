"""Adapter folders in PEFT's layout: adapter_config.json and adapter_model.safetensors.

PEFT adds LoRA to the layers that Hugging Face's classes have, where ours may hold several in one
matrix (queries, keys and values; gate and up). As the addition's rows belong to the matrix's rows,
it is cut exactly: the parts share A, and each has its rows of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.models.spec import ModelSpec
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import write_tensors

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT wraps a model in."""

Additions = Mapping[str, tuple[Tensor, Tensor]]
"""A (r, inputs) and B (outputs, r) by the name of the layer in our body."""


@dataclass(frozen=True)
class Adapter:
    """What LoRA has learned."""

    base: Pretrained
    """The frozen model."""
    additions: Additions
    heads: Mapping[str, Tensor]
    """Layers trained whole, in Hugging Face's names."""


class Peft:
    """Folders of adapters, as PEFT writes and opens them."""

    name = "peft"

    def recognises(self, path: Path) -> bool:
        """Whether there is the description of an adapter."""
        return (path / ADAPTER_CONFIG).is_file()

    def open(self, path: Path) -> Pretrained:
        """Raises InputError: an adapter is no model by itself."""
        raise InputError(
            f"{path} holds what LoRA added to a model, and no model; give the one that it was "
            "merged into, which a run has beside it, or merge it with PEFT"
        )

    def save(
        self, folder: Path, model: Adapter, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Write an adapter.

        extra: ``task_type`` as PEFT calls it (``CAUSAL_LM`` or ``SEQ_CLS``), ``r``, ``lora_alpha``
        and ``lora_dropout``.
        """
        parts, transposed = cut(model.additions, model.base.spec, model.base.config)
        tensors = {f"{PREFIX}{name}": tensor for name, tensor in model.heads.items()}
        for name, (a, b) in parts.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = a
            tensors[f"{PREFIX}{name}.lora_B.weight"] = b
        fields = {
            "peft_type": "LORA",
            "task_type": extra["task_type"],
            "base_model_name_or_path": str(model.base.path.resolve()),
            "r": extra["r"],
            "lora_alpha": extra["lora_alpha"],
            "lora_dropout": extra["lora_dropout"],
            # Whole names: the end of one may be the end of another, as with BERT's output.dense.
            "target_modules": sorted(parts),
            "modules_to_save": sorted({name.rpartition(".")[0] for name in model.heads}) or None,
            "fan_in_fan_out": transposed,
            "bias": "none",
            "inference_mode": True,
            "init_lora_weights": True,
            "layers_pattern": None,
            "layers_to_transform": None,
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_rslora": False,
            "use_dora": False,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / ADAPTER_WEIGHTS, tensors)
        text = to_json(fields, indent=2) + "\n"
        (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def cut(
    additions: Additions, spec: ModelSpec, config: Any
) -> tuple[dict[str, tuple[Tensor, Tensor]], bool]:
    """A and B by the names of Hugging Face's layers, and whether those keep their matrices as
    (inputs, outputs)."""
    parts, transposed = {}, False
    for ours, (a, b) in additions.items():
        # What the architecture's export does to the rows of a matrix is seen by numbering them.
        numbered = {f"{ours}.weight": torch.arange(len(b))[:, None]}
        for theirs, rows in spec.export_tensors(numbered, config).items():
            # safetensors refuses tensors that share memory.
            parts[theirs.removesuffix(".weight")] = (a.clone(), b[rows.flatten()])
            transposed = transposed or rows.shape[0] == 1
    return parts, transposed
