"""Prediction: class probabilities of texts, and what a masked token may be.

B texts, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.tables.labelled import Example
from llmctl.errors import LOGITS_NOT_FINITE, InputError
from llmctl.objectives.classify import Classifier, EncodedExample, collate
from llmctl.objectives.masked_lm import MaskedLM
from llmctl.tokenizers import Tokenizer

BATCH = 64
"""Texts computed together."""
READ_AHEAD = 16 * BATCH
"""Texts read before the first answer: sorted by length among themselves, so that little is
padding, and few enough that answers stream."""


@torch.inference_mode()
def class_probabilities(
    model: Classifier, examples: Sequence[EncodedExample], pad: int
) -> NDArray[np.float64]:
    """Softmax probabilities (B, C) in the order given."""
    model.eval()
    device = next(model.parameters()).device
    order = np.argsort([len(example.ids) for example in examples], kind="stable")
    result = np.empty((len(examples), model.output.out_features))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = collate([examples[row] for row in rows], pad).to(device)
        result[rows] = _softmax(model(batch)).cpu().numpy()
    return result


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities over the last dimension, in fp64. Raises InputError if there are none."""
    if not torch.isfinite(logits).all():
        raise InputError(LOGITS_NOT_FINITE)
    return torch.softmax(logits.double(), dim=-1)


def in_blocks(examples: Iterable[Example], size: int = READ_AHEAD) -> Iterator[list[Example]]:
    """Consecutive groups of a stream; the first small, so that the first answer comes soon."""
    iterator = iter(examples)
    take = BATCH
    while block := list(islice(iterator, take)):
        yield block
        take = size


@dataclass(frozen=True)
class Candidate:
    """A token that may stand at a mask."""

    token: str
    probability: float


@torch.inference_mode()
def fill_masks(
    model: MaskedLM, tokenizer: Tokenizer, example: Example, *, max_length: int, top: int
) -> list[list[Candidate]]:
    """For each mask of a text, the likeliest tokens with their probabilities.

    Raises InputError, naming where the text is from, if it has no mask or is too long.
    """
    if "mask" not in tokenizer.special:
        raise InputError(
            "the tokenizer has no token for a mask, so there is none to fill; take a model with one"
        )
    mask = tokenizer.special["mask"]
    layout = tokenizer.layout
    text = tokenizer.encode(example.text, allow_special=True)
    ids = [*layout.before, *text, *layout.after]
    places = [place for place, number in enumerate(ids) if number == mask]
    if not places:
        raise InputError(
            f"{example.source} has no {tokenizer.id_to_token(mask)}; write one where a word is to "
            "be found"
        )
    if len(ids) > max_length:
        raise InputError(
            f"{example.source} has {len(ids)} tokens and the model takes {max_length}; shorten it"
        )
    model.eval()
    device = next(model.parameters()).device
    hidden_1TD = model.body(torch.tensor([ids], device=device))
    probabilities_MV = _softmax(model.token_logits(hidden_1TD[0, places]))
    # A special token is never the word that is missing, nor is a row that no piece has.
    probabilities_MV = probabilities_MV[:, : tokenizer.vocab_size]
    probabilities_MV[:, [*tokenizer.special_ids, *tokenizer.holes]] = 0.0
    best = torch.topk(probabilities_MV, min(top, probabilities_MV.shape[1]))
    return [
        [
            Candidate(tokenizer.id_to_token(int(number)), float(probability))
            for number, probability in zip(numbers, values, strict=True)
        ]
        for numbers, values in zip(best.indices, best.values, strict=True)
    ]
