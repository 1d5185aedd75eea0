"""What is said of a model beside its network: what it does, and what it was trained on.

A folder in Hugging Face's layout says it in config.json. What a model does is said, never guessed
from names of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import InputError
from llmctl.models.config_json import shown
from llmctl.models.heads import HEADS
from llmctl.tokenizers import Tokenizer

TASK, TOKENIZER = "llmctl_task", "llmctl_tokenizer"
"""Fields that only llmctl writes: what the model does, and its tokenizer's digest."""
MAX_LENGTH, CHAT = "llmctl_max_length", "llmctl_chat"
"""Tokens trained on, and whether the model has learned to answer."""
FIM = "llmctl_fim"
"""The share of its training text by which a language model learned to fill in the middle; the field
of those whose tokenizer has the tokens for it."""
STYLE, LEAD_WORDS = "llmctl_style", "llmctl_target_words"
MAX_SOURCE, MAX_TARGET = "llmctl_max_source", "llmctl_max_target"
"""Fields of models finetuned on pairs: how they write from a source, words of a target on average,
and tokens of both at most."""
COLUMNS = "llmctl_columns"
"""The field of finetuned models with the columns of the table that they were trained on."""
PROBLEM, MULTI_LABEL = "problem_type", "multi_label_classification"
"""What transformers says of a classifier, and its word for one that gives any number of labels."""
THRESHOLDS, ORDINAL = "llmctl_thresholds", "llmctl_ordinal"
"""The probability from which on each of such labels is given, and the field of a classifier whose
classes are in an order."""
CLOZE = "llmctl_cloze"
"""The field of a masked language model that was trained to classify by a template, which it is."""
SCHEME = "llmctl_scheme"
"""How the tags of a tagger spell entities."""

MODEL_KINDS = {
    **{kind: head.described for kind, head in HEADS.items()},
    "seq2seq": "a model that writes from a source",
    "cloze": "a classifier by a cloze",
    "ngram": "an n-gram model",
}
"""What a model does, as ``llmctl_task`` has it, and in words."""


NEXT_TOKEN_KINDS = ("causal_lm", "gpt_bert")
"""Those of networks that go on with a text."""


class PurposeError(InputError):
    """What is said of a model's purpose can't be used; the message does not name the file."""


@dataclass(frozen=True)
class Purpose:
    """What a model does."""

    kind: str | None
    """One of ``MODEL_KINDS``; None: nothing that is known here, and only its body is of use."""
    reason: str = ""
    """Why, then."""


def names_of_labels(fields: Mapping[str, Any], count: int) -> list[str]:
    """The names of a classifier's classes, in order.

    Raises PurposeError if they are not those of so many.
    """
    labels = fields.get("id2label")
    if labels is None:
        return [f"LABEL_{number}" for number in range(count)]
    if (
        not isinstance(labels, dict)
        or labels.keys() != set(map(str, range(count)))
        or not all(isinstance(name, str | int | float) for name in labels.values())
    ):
        raise PurposeError(
            f"id2label is {shown(labels)}, not a name for each of the {count} classes that the "
            "weights have; copy it again"
        )
    names = [str(labels[str(number)]) for number in range(count)]
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise PurposeError(f"id2label has the name {twice!r} twice; give each class its own")
    return names


def check_tokenizer(path: Path, tokenizer: Tokenizer, digest: object) -> None:
    """Raises InputError unless a tokenizer has the digest of the one that a model learned with."""
    if digest != tokenizer.digest():
        raise InputError(
            f"{path}: the tokenizer is not the one that the model was trained with (its digest "
            "differs from config.json's); they don't belong together: copy it again from where "
            "the model was made"
        )
