"""A GGUF file to a model. Quantised tensors become fp32 one by one, as they are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmctl.errors import InputError, did_you_mean
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH, Purpose, PurposeError
from llmctl.formats.gguf.file import AGAIN
from llmctl.formats.gguf.parts import GgufParts
from llmctl.formats.huggingface.weights import check_body, check_sizes
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.models.config_json import FieldError
from llmctl.models.gguf_names import (
    CLASSIFIES,
    EMBEDDING_TENSOR,
    GGUF_ARCHITECTURES,
    POOLING_NUMBERS,
    ROPE_FREQUENCIES,
    GgufArchitecture,
    config_fields,
    rope_divisors,
)
from llmctl.models.heads.embed import NORMALIZE, POOLING
from llmctl.tokenizers.gguf_vocabulary import read_tokenizer

ARCHITECTURE, KIND = "general.architecture", "general.type"
OWN = "llmctl."
"""What the names of fields begin with that only llmctl writes."""
_VALUE_TYPES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(
        (ARCHITECTURE, KIND, "tokenizer.ggml.model", "tokenizer.ggml.pre"), (str, "a text")
    ),
    **dict.fromkeys(("tokenizer.ggml.tokens", "tokenizer.ggml.merges"), (list, "a list of texts")),
    **dict.fromkeys(
        ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"), (np.ndarray, "an array of numbers")
    ),
}
"""What the values of a head must be, and how that is called."""
_VALUE_TYPES_BY_ENDING: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "_token_id": (int, "a whole number"),
    "_token": ((bool, int), "true or false"),
    "_prefix": ((bool, int), "true or false"),
}
"""Those of the tokenizer's other values, by the ends of their names."""


def read_gguf(path: Path) -> Pretrained:
    """The model of a file, or of the parts that it is one of.

    Raises InputError naming what is missing, malformed or not known."""
    file = GgufParts(path)
    _check_types(file)
    entry = _entry(file)
    shapes = file.shapes
    if EMBEDDING_TENSOR not in shapes:
        raise InputError(f"{path} has no tensor {EMBEDDING_TENSOR}; {AGAIN}")
    try:
        divisors = file.get(ROPE_FREQUENCIES)
        fields = config_fields(entry, file.head, shapes, divisors)
        config = entry.spec.from_hugging_face(fields)
        if divisors is not None:
            expected = rope_divisors(config)
            if expected is None or not torch.allclose(expected, divisors, rtol=1e-4):
                raise FieldError(
                    f"{ROPE_FREQUENCIES} are not the frequencies of llama3 with factors 1 and 4 "
                    "and 8,192 tokens, and others are not known here"
                )
        purpose, more = _purpose(entry, file)
    except (FieldError, PurposeError) as error:
        raise InputError(f"{path}: {error}") from None
    names = entry.weights(config)
    kind = purpose.kind or entry.spec.usual_head
    try:
        check_sizes(config, shapes)
        beside = {*names.head_names(kind), ROPE_FREQUENCIES}
        check_body(entry.spec, config, shapes, beside, names)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not the model that its head describes ({error}); {AGAIN}"
        ) from None
    return Pretrained(
        path=path,
        files=file.paths,
        fields={**fields, **_own(file.head), **more},
        config=config,
        tokenizer=read_tokenizer(path, file.head, config.vocab_size),
        purpose=purpose,
        tensors=LazyTensors(names.model_readers(kind, file, config)),
        architecture=entry.spec,
    )


def _check_types(file: GgufParts) -> None:
    """Raises InputError naming a value of another type than is read."""
    for name, value in file.head.items():
        ending = name[name.rfind("_", 0, -3 if name.endswith("_id") else None) :]
        by_ending = _VALUE_TYPES_BY_ENDING.get(ending) if name.startswith("tokenizer.") else None
        wanted = _VALUE_TYPES.get(name) or by_ending
        if wanted is not None and not isinstance(value, wanted[0]):
            raise InputError(f"{file.path}: {name} is not {wanted[1]}; {AGAIN}")


def _entry(file: GgufParts) -> GgufArchitecture:
    name, kind = file.head.get(ARCHITECTURE), file.head.get(KIND, "model")
    if kind != "model":
        raise InputError(f"{file.path}: {KIND} is {kind!r}; files of a whole model are read")
    if name not in list(GGUF_ARCHITECTURES):
        raise InputError(
            f"{file.path}: {ARCHITECTURE} {name!r} is not supported"
            f"{did_you_mean(str(name), GGUF_ARCHITECTURES)}; known: {', '.join(GGUF_ARCHITECTURES)}"
        )
    return GGUF_ARCHITECTURES[name]


def _purpose(entry: GgufArchitecture, file: GgufParts) -> tuple[Purpose, dict[str, Any]]:
    """What a model does, and what a config.json would say of it."""
    pooling = file.head.get(f"{entry.name}.pooling_type", 0)
    if pooling in POOLING_NUMBERS:
        return Purpose("embed"), {POOLING: POOLING_NUMBERS[pooling], NORMALIZE: True}
    if entry.spec.kind == "decoder":
        return Purpose("causal_lm"), {}
    if pooling == CLASSIFIES and "cls.output.weight" in file:
        count = len(file["cls.output.weight"])
        labels = file.head.get(f"{entry.name}.classifier.output_labels")
        if labels is not None and len(labels) != count:
            raise PurposeError(f"it has {count} classes and {len(labels)} names of classes")
        names = {str(number): name for number, name in enumerate(labels or ())}
        return Purpose("classify"), {"id2label": names} if names else {}
    return Purpose(
        None, "the file doesn't say how vectors are made of it (pooling_type), and has no head"
    ), {}


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    """What only llmctl writes into a head of the model itself, as its config.json has it."""
    length = values.get(f"{OWN}max_length")
    return {MAX_LENGTH: length} if isinstance(length, int) and length > 0 else {}
