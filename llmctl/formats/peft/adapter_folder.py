"""Adapter folders in PEFT's layout: adapter_config.json and adapter_model.safetensors.

PEFT adds LoRA to the layers that Hugging Face's classes have, where ours may hold several in one
matrix (queries, keys and values; gate and up). As the addition's rows belong to the matrix's rows,
it is cut exactly: the parts share A, and each has its rows of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.models.spec import ModelSpec
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import write_tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT wraps a model in."""

Additions = Mapping[str, tuple[Tensor, Tensor]]
"""A (r, inputs) and B (outputs, r) by the name of the layer in our body."""


def write_adapter_folder(
    folder: Path,
    additions: Additions,
    *,
    body: Mapping[str, Tensor],
    architecture: ModelSpec,
    model_config: Any,
    heads: Mapping[str, Tensor],
    rank: int,
    alpha: float,
    dropout: float,
    base: str,
    task_type: str,
) -> None:
    """Write what LoRA has learned.

    body: the body's state dict, for its names and shapes. heads: layers trained whole, in Hugging
    Face's names. base: where the frozen model is. task_type: PEFT's, ``CAUSAL_LM`` or ``SEQ_CLS``.
    """
    parts, transposed = cut(additions, body, architecture, model_config)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in heads.items()}
    for name, (a, b) in parts.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    whole = sorted({name.rpartition(".")[0] for name in heads})
    fields = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        # Whole names: the end of one may be the end of another, as with BERT's output.dense.
        "target_modules": sorted(parts),
        "modules_to_save": whole or None,
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
    write_tensors(folder / WEIGHTS, tensors)
    text = to_json(fields, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def cut(
    additions: Additions, body: Mapping[str, Tensor], architecture: ModelSpec, config: Any
) -> tuple[dict[str, tuple[Tensor, Tensor]], bool]:
    """A and B by the names of Hugging Face's layers, and whether those keep their matrices as
    (inputs, outputs)."""
    # What the architecture's export does to the rows of a matrix is seen by numbering them.
    numbered = dict(body)
    begins = [0]
    for name, (_, b) in additions.items():
        rows = torch.arange(begins[-1], begins[-1] + len(b))
        numbered[f"{name}.weight"] = rows[:, None]
        begins.append(begins[-1] + len(b))
    names = list(additions)
    parts, transposed = {}, False
    for theirs, tensor in architecture.export_tensors(numbered, config).items():
        if tensor.dtype != torch.int64:
            continue
        rows = tensor.flatten()
        which = int(torch.bucketize(rows[0], torch.tensor(begins), right=True)) - 1
        a, b = additions[names[which]]
        # safetensors refuses tensors that share memory.
        parts[theirs.removesuffix(".weight")] = (a.clone(), b[rows - begins[which]])
        transposed = transposed or tensor.shape[0] == 1
    return parts, transposed
