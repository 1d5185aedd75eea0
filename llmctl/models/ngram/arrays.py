"""An n-gram model as arrays by name, and back.

``1.probability`` is (V,) over the vocabulary. Of each order n from 2 on, with N n-grams behind C
contexts: ``n.first`` (C + 1,), ``n.backoff`` (C,), ``n.word`` (N,) and ``n.probability`` (N,), as
llmctl/models/ngram/model.py has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.models.ngram.model import NgramModel, NgramTable
from llmctl.models.ngram.smoothing import NgramConfig

PARTS = ("first", "backoff", "word", "probability")


def arrays_of(model: NgramModel) -> dict[str, NDArray[Any]]:
    """The arrays of a model."""
    arrays = {"1.probability": model.unigram}
    for order, table in enumerate(model.tables, 2):
        arrays |= {f"{order}.{part}": getattr(table, part) for part in PARTS}
    return arrays


def model_of(
    tensors: Mapping[str, NDArray[Any]], config: NgramConfig, vocab_size: int
) -> NgramModel:
    """The model of some arrays. Raises ValueError unless every look-up in them is a sound one."""
    names = {"1.probability", *(f"{n}.{p}" for n in range(2, config.order + 1) for p in PARTS)}
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
        table = NgramTable(*(tensors[f"{order}.{part}"] for part in PARTS))
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
