"""A model of any format as a folder in Hugging Face's layout, and its description beside its
network, for whatever writes it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import CHAT, MAX_LENGTH, TASK, TOKENIZER
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.sampling_defaults import add_sampling, sampling_fields
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.models.config_json import OWN_PREFIX

OF_HEADS = ("id2label", "label2id", "problem_type")
"""Fields of a description that tell what a head's numbers stand for."""
SETTLED_FIELDS = (TASK, TOKENIZER)
"""Fields that whoever writes a folder settles itself."""


def fields_beside(model: Pretrained) -> dict[str, Any]:
    """What a description says beside the network, as far as it holds in another format."""
    kept = {
        name: value
        for name, value in model.fields.items()
        if name in OF_HEADS or (name.startswith(OWN_PREFIX) and name not in SETTLED_FIELDS)
    }
    if model.kind == "embed":
        kept.setdefault(MAX_LENGTH, model.max_length)
    if TOKENIZER not in model.fields and model.tokenizer.chat_template is not None:
        kept[CHAT] = True  # elsewhere a model has a template because it answers
    return kept


def check_is_whole(model: Pretrained) -> None:
    """Raises InputError for a model with virtual tokens before its texts, which are no weights of
    its network: without them it would answer as another."""
    if model.virtual is not None:
        raise InputError(
            f"{model.path} has virtual tokens before its texts (a soft prompt or a prefix), which "
            "lie beside a model's weights: use its folder as it is, or finetune by a method that "
            "becomes part of the weights, as lora"
        )


def write_rewritten(model: Pretrained, folder: Path) -> None:
    """Write a model anew, its tensors in fp32, with what its folder says of how texts are chosen.

    Raises InputError for one that transformers has no class for, or with virtual tokens.
    """
    check_is_whole(model)
    if model.architecture is None or model.decoder is not None:
        raise InputError(
            f"{model.path} is {model.described}, for which transformers has no class; use it with "
            "llmctl"
        )
    save = SentenceTransformers().save if model.kind == "embed" else write_model_folder
    save(folder, model.network(), model.tokenizer, fields_beside(model))
    add_sampling(folder, sampling_fields(model))
