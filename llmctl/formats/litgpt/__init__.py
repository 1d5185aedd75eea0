"""Checkpoints of LitGPT: a folder with ``lit_model.pth`` and ``model_config.yaml``, and the
tokenizer's files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl import tokenizers
from llmctl.errors import InputError, read_errors_naming
from llmctl.formats.base import Pretrained
from llmctl.formats.description import Purpose
from llmctl.formats.huggingface.weights import (
    AGAIN,
    Weights,
    check_body,
    check_sizes,
    load_pickled,
)
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.models import BY_MODEL_TYPE
from llmctl.models.config_json import FieldError
from llmctl.models.litgpt_fields import described_by
from llmctl.models.litgpt_names import (
    BEFORE_2025,
    CURRENT,
    EMBEDDING_MATRIX,
    OUTPUT_MATRIX,
    names_of,
)
from llmctl.tokenizers import Tokenizer

CONFIG_FILE, WEIGHTS_OF_IT = "model_config.yaml", "lit_model.pth"
MOST_CONFIG = 1 << 20
"""Bytes of a table of fields at most."""
MOST_VALUES = 1 << 17
"""Values in it at most, those that stand for others counted wherever they do."""
MAKE_PLAIN = "save its tensors alone, as litgpt convert_pretrained_checkpoint does"
LORA_MARK = "lora_"
"""What the names of matrices have that stand beside others and aren't merged into them yet."""


class LitGpt:
    """What LitGPT downloads, pretrains, finetunes and converts to."""

    name = "litgpt"

    def recognises(self, path: Path) -> bool:
        """Whether its weights are there, beside whatever files it copies from elsewhere."""
        return (path / WEIGHTS_OF_IT).exists()

    def open(self, path: Path) -> Pretrained:
        """The model of a folder. Raises InputError naming what is missing, malformed or not known
        here."""
        config_path, file = path / CONFIG_FILE, path / WEIGHTS_OF_IT
        said = _read_config(config_path)
        weights, grouped = _read(file)
        tied = weights.repeats(OUTPUT_MATRIX, EMBEDDING_MATRIX)
        try:
            fields = described_by(said, tied=tied)
            spec = BY_MODEL_TYPE[fields["model_type"]]
            config = spec.from_hugging_face(fields)
        except FieldError as error:
            raise InputError(f"{config_path}: {error}") from None
        names = names_of(config, grouped=grouped)
        try:
            check_sizes(config, weights.shapes)
            check_body(spec, config, weights.shapes, {OUTPUT_MATRIX}, names)
        except ValueError as error:
            raise InputError(
                f"{file} is not the model that {CONFIG_FILE} describes ({error}); copy the whole "
                "folder again from where it was made"
            ) from None
        tokenizer = tokenizers.load(path)
        if tokenizer.vocab_size > config.vocab_size:
            raise InputError(
                f"{path}: the tokenizer has {tokenizer.vocab_size} pieces and the model "
                f"{config.vocab_size}; copy the tokenizer again from where the model was made"
            )
        return Pretrained(
            path=path,
            files=(config_path, file),
            fields={},
            config=config,
            tokenizer=tokenizer,
            purpose=Purpose("causal_lm"),
            tensors=LazyTensors(names.model_readers("causal_lm", weights, config)),
            architecture=spec,
        )

    def save(
        self, folder: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Raises InputError: such folders are only read."""
        raise InputError(
            "models are not written as LitGPT's; export to hf, and let litgpt "
            "convert_to_litgpt read that"
        )


def _read_config(path: Path) -> dict[str, Any]:
    """The fields of a file. Raises InputError where it can't be read."""
    import yaml

    if not path.is_file():
        raise InputError(f"{path} is missing; {AGAIN}")
    with read_errors_naming(path):
        if path.stat().st_size > MOST_CONFIG:
            raise InputError(f"{path} is too long to be a model's fields; {AGAIN}")
        data = path.read_bytes()
    try:
        fields = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} can't be read as YAML: {reason}; {AGAIN}") from None
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise InputError(f"{path} is no table of fields; {AGAIN}")
    # A value may be named many times over, and what such names stand for is never written down.
    unseen: list[Any] = [fields]
    count = 0
    while unseen and count <= MOST_VALUES:
        value = unseen.pop()
        if isinstance(value, dict | list):
            unseen += value.values() if isinstance(value, dict) else value
            count += len(value)
    if not unseen:
        return fields
    raise InputError(f"{path} stands for too many values to be a model's fields; {AGAIN}")


def _read(file: Path) -> tuple[Weights, bool]:
    """The tensors of a checkpoint in today's names, and whether queries, keys and values lie group
    by group. Raises InputError for what is none, or not merged yet."""
    if file.is_dir():
        raise InputError(
            f"{file} is a folder of parts of a checkpoint; put them together with litgpt "
            "convert_pretrained_checkpoint"
        )
    value = load_pickled(file, MAKE_PLAIN)
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value = value["model"]
    grouped = isinstance(value, dict) and any(BEFORE_2025 in str(name) for name in value)
    if grouped:  # before they could be taken for a buffer of older GPT-2s, attn.bias
        renamed = {str(name): str(name).replace(BEFORE_2025, CURRENT) for name in value}
        twice = next((old for old, new in renamed.items() if old != new and new in value), None)
        if twice is not None:
            raise InputError(f"{file} has {twice} by today's name as well; {AGAIN}")
        value = {renamed[str(name)]: tensor for name, tensor in value.items()}
    weights = Weights.of_checkpoint(file, value)
    beside = next((name for name in weights if LORA_MARK in name), None)
    if beside is not None:
        raise InputError(
            f"{file} has the tensor {beside}, of a LoRA that is not merged into the model; merge "
            "it with litgpt merge_lora"
        )
    return weights, grouped
