"""An n-gram model as a folder: config.json, ngram.safetensors and the tokenizer.

No other program has this layout, so config.json says ``llmctl_ngram``. The tables are read where
they lie, by memory mapping: a model is ready at once, whatever its size.

``1.probability`` is (V,) over the vocabulary. Of each order n from 2 on, with N n-grams behind C
contexts: ``n.first`` (C + 1,), ``n.backoff`` (C,), ``n.word`` (N,) and ``n.probability`` (N,), as
llmctl/models/ngram/model.py has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from llmctl import tokenizers
from llmctl.errors import InputError
from llmctl.models.ngram.model import NgramModel, Table
from llmctl.models.ngram.smoothing import NgramConfig
from llmctl.parsing import read_json_object
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import read_tensors, write_tensors

MODEL_TYPE = "llmctl_ngram"
WEIGHTS = "ngram.safetensors"
TOKENIZER = "llmctl_tokenizer"
"""The tokenizer's digest, as in every config.json of ours."""
AGAIN = "copy the whole folder again from where it was made"


@dataclass(frozen=True)
class NgramFolder:
    """What lies in an n-gram model's folder."""

    path: Path
    fields: dict[str, Any]
    """config.json."""
    config: NgramConfig
    model: NgramModel
    tokenizer: Tokenizer


def is_ngram_folder(path: Path) -> bool:
    """Whether a folder's config.json says that it holds an n-gram model."""
    try:
        fields = read_json_object(path / "config.json")
    except (OSError, InputError):
        return False
    return fields.get("model_type") == MODEL_TYPE


def write_ngram_folder(
    folder: Path, model: NgramModel, config: NgramConfig, tokenizer: Tokenizer
) -> None:
    """Write a trained model."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "model_type": MODEL_TYPE,
        "vocab_size": model.vocab_size,
        **config.model_dump(),
        TOKENIZER: tokenizer.digest(),
    }
    text = to_json(fields, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    arrays = {"1.probability": model.unigram}
    for order, table in enumerate(model.tables, 2):
        for name in ("first", "backoff", "word", "probability"):
            arrays[f"{order}.{name}"] = getattr(table, name)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": MODEL_TYPE})
    tokenizer.save(folder)


def read_ngram_folder(path: Path) -> NgramFolder:
    """Read an n-gram model's folder. Raises InputError naming the file that is missing or
    damaged."""
    fields = _read_fields(path / "config.json")
    try:
        config = NgramConfig.model_validate({k: fields.get(k) for k in NgramConfig.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path / 'config.json'} describes no n-gram model ({where}: {first['msg']}); {AGAIN}"
        ) from None
    tokenizer = tokenizers.load(path)
    if fields.get(TOKENIZER) != tokenizer.digest():
        raise InputError(
            f"{path}: the tokenizer is not the one that the model was trained with (its digest "
            "differs from config.json's); they don't belong together: copy it again from where "
            "the model was made"
        )
    tensors = {name: tensor.numpy() for name, tensor in read_tensors(path / WEIGHTS).items()}
    try:
        model = _model(tensors, config, tokenizer.vocab_size)
    except ValueError as error:
        raise InputError(
            f"{path / WEIGHTS} is not the model that config.json describes ({error}); {AGAIN}"
        ) from None
    if "bos" in tokenizer.special:  # every document has begun so
        tokenizer = tokenizer.for_decoder()
    return NgramFolder(path, fields, config, model, tokenizer)


def _read_fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} has no config.json; give a model's folder or a run's name")
    fields = read_json_object(path, AGAIN)
    if fields.get("model_type") != MODEL_TYPE:
        raise InputError(f"{path} describes no n-gram model of llmctl; give the folder of one")
    return fields


def _model(tensors: Mapping[str, NDArray[Any]], config: NgramConfig, vocab_size: int) -> NgramModel:
    """The model of some arrays. Raises ValueError unless every look-up in them is a sound one."""
    parts = ("first", "backoff", "word", "probability")
    names = {"1.probability", *(f"{n}.{p}" for n in range(2, config.order + 1) for p in parts)}
    if tensors.keys() != names:
        raise ValueError(f"it has not the tensors of order {config.order}")
    for name, array in tensors.items():
        kinds = "f" if name.endswith(("backoff", "probability")) else "iu"
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
    unigram, contexts = tensors["1.probability"], vocab_size
    if len(unigram) != vocab_size:
        raise ValueError(f"it has {len(unigram)} tokens and the tokenizer {vocab_size}")
    _check_probabilities("1.probability", unigram)
    tables = []
    for order in range(2, config.order + 1):
        table = Table(*(tensors[f"{order}.{part}"] for part in parts))
        count = len(table.word)
        if not len(table.first) - 1 == len(table.backoff) == contexts or (
            len(table.probability) != count
        ):
            raise ValueError(f"the lengths of order {order} don't fit together")
        if (
            table.first[0] != 0
            or table.first[-1] != count
            or ((table.first[1:] < table.first[:-1]).any())
        ):
            raise ValueError(f"{order}.first does not rise from 0 to {count}")
        if count and not 0 <= table.word.min() <= table.word.max() < vocab_size:
            raise ValueError(f"{order}.word has ids beyond the vocabulary")
        _check_probabilities(f"{order}.probability", table.probability)
        if contexts and not 0 < table.backoff.min() <= table.backoff.max() < np.inf:
            raise ValueError(f"{order}.backoff has weights that are not positive numbers")
        tables.append(table)
        contexts = count
    return NgramModel(unigram, tables, backs_off=config.smoothing != "add-k")


def _check_probabilities(name: str, values: NDArray[Any]) -> None:
    # NaN fails every comparison.
    if len(values) and not 0 < values.min() <= values.max() <= 1:
        raise ValueError(f"{name} has values that are no probabilities")
