"""A model to a GGUF file: F32, F16, Q8_0 or Q4_0 matrices, all else in fp32.

Of a Q4_0 file the token embedding, which may be the output layer too, has Q8_0, as llama.cpp's own
files keep it finer than the rest. A matrix whose rows are no whole number of blocks has F16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.gguf.blocks import BLOCK_KINDS, BlockKind
from llmctl.formats.gguf.file import write_gguf
from llmctl.formats.gguf.reading import OWN
from llmctl.formats.huggingface.writing import KINDS_OF_MODELS
from llmctl.models import ARCHITECTURES
from llmctl.models.gguf_names import (
    CLASSIFIES,
    EMBEDDING_TENSOR,
    GGUF_ARCHITECTURES,
    POOLING_NUMBERS,
    ROPE_FREQUENCIES,
    GgufArchitecture,
    entry_of,
    head_values,
    rope_divisors,
)
from llmctl.models.heads import HEADS
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.gguf_values import tokenizer_values

QUANTISATIONS = {"f32": 0, "f16": 1, "q8_0": 7, "q4_0": 2}
"""By name, ``general.file_type``."""
QUANTISATION, CALLED, MADE_FROM = "quantisation", "name", "made_from"
"""What ``extra`` says beside a description's fields: one of these, what the model is called, and a
digest of what the file is made from."""
BLOCKS_VERSION = 2
"""The version of the layouts of quantised blocks: general.quantization_version."""
KEPT_WHOLE = ("position_embd.weight", "token_types.weight")
"""Matrices of which rows are added, and that llama.cpp wants in fp32."""


def write_gguf_model(
    path: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
) -> None:
    """Write a trained model. extra: its description's fields, ``QUANTISATION`` and ``CALLED``.

    Raises InputError for a model that no such file can hold.
    """
    config, kind = model.body.config, KINDS_OF_MODELS[type(model)]
    spec = next(spec for spec in ARCHITECTURES.values() if type(config) is spec.config)
    entry = entry_of(spec)
    if entry is None:
        raise InputError(
            f"a GGUF file can't hold a {spec.name}; {', '.join(GGUF_ARCHITECTURES)} and mistral "
            "are supported: export to hf or onnx"
        )
    fields = spec.to_hugging_face(config)
    quantisation = str(extra.get(QUANTISATION, "f16"))
    values = {
        "general.architecture": entry.name,
        "general.type": "model",
        "general.name": str(extra.get(CALLED, spec.name)),
        "general.file_type": QUANTISATIONS[quantisation],
        "general.quantization_version": BLOCKS_VERSION,
        **head_values(entry, fields),
        **_purpose_values(entry, kind, model, extra),
        **tokenizer_values(tokenizer, config.vocab_size),
    }
    if MAX_LENGTH in extra:
        values[f"{OWN}max_length"] = int(extra[MAX_LENGTH])
    if MADE_FROM in extra:
        values[f"{OWN}{MADE_FROM}"] = str(extra[MADE_FROM])
    names = entry.weights(config)
    state = model.state_dict()
    body = {n.removeprefix("body."): t for n, t in state.items() if n.startswith("body.")}
    tensors = {
        **names.export_tensors(body, config),
        **names.export_head(kind, state, config),
    }
    divisors = rope_divisors(config)
    if divisors is not None:
        tensors[ROPE_FREQUENCIES] = divisors
    write_gguf(path, values, tensors, {n: kind_of(n, t, quantisation) for n, t in tensors.items()})


def _purpose_values(
    entry: GgufArchitecture, kind: str, model: Any, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """What a head says of what a model does. Raises InputError for what it can't."""
    values: dict[str, Any] = {}
    if entry.spec.kind == "encoder":
        values[f"{entry.name}.attention.causal"] = False
    if kind in entry.heads and kind != "classify":
        return values
    if kind == "embed":
        number = next((n for n, name in POOLING_NUMBERS.items() if name == model.pooling), None)
        if number is None:
            raise InputError(
                f"a GGUF file can't hold an embedder that takes the {model.pooling} of its tokens; "
                f"{', '.join(POOLING_NUMBERS.values())} are known there: export to hf or onnx"
            )
        return {**values, f"{entry.name}.pooling_type": number}
    if kind not in entry.heads:
        described = HEADS[kind].described if kind in HEADS else "a model that writes from a source"
        raise InputError(
            f"a GGUF file can't hold {described} of the architecture {entry.name}; export to hf or "
            "onnx"
        )
    labels = extra.get("id2label") or {}
    values[f"{entry.name}.pooling_type"] = CLASSIFIES
    if labels:
        names = [str(labels[str(number)]) for number in range(len(labels))]
        values[f"{entry.name}.classifier.output_labels"] = names
    return values


def kind_of(name: str, tensor: Tensor, quantisation: str) -> BlockKind:
    """How a tensor is kept in a file of a quantisation."""
    if tensor.dim() < 2 or name in KEPT_WHOLE or quantisation == "f32":
        return BLOCK_KINDS["F32"]
    wanted = BLOCK_KINDS[quantisation.upper()]
    if wanted.name == "Q4_0" and name == EMBEDDING_TENSOR:
        wanted = BLOCK_KINDS["Q8_0"]
    return wanted if tensor.shape[-1] % wanted.size == 0 else BLOCK_KINDS["F16"]
