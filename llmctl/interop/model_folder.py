"""Model folders in Hugging Face's layout: config.json, model.safetensors and the tokenizer.

What llmctl trains is always kept like this, so ``transformers`` opens it with no export, and a
BERT made elsewhere can be given wherever a run is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llmctl import tokenizers
from llmctl.errors import InputError, did_you_mean
from llmctl.models import ARCHITECTURES, Architecture
from llmctl.models.bert import Bert
from llmctl.objectives import classify, masked_lm
from llmctl.tokenizers import Tokenizer
from llmctl.training.checkpoints import read_tensors, write_tensors

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """What lies in a model folder; tensors are in Hugging Face's names."""

    path: Path
    fields: dict[str, Any]
    """config.json."""
    architecture: Architecture
    config: Any
    """Our configuration of the body."""
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes by number, if this is a classifier."""
        if "classifier.weight" not in self.tensors:
            return None
        count = len(self.tensors["classifier.weight"])
        names = self.fields.get("id2label", {})
        return [str(names.get(str(number), f"LABEL_{number}")) for number in range(count)]

    @property
    def max_length(self) -> int:
        """Tokens of text that the model was trained on, or can take."""
        return int(self.fields.get("llmctl_max_length", self.config.max_positions))

    def masked_lm(self) -> masked_lm.MaskedLM:
        """The model with the heads of pretraining. Raises InputError if it has none."""
        return masked_lm.from_hugging_face(Bert(self.config), self.tensors)

    def classifier(self) -> classify.Classifier:
        """The model with its classification head. Raises InputError if it has none."""
        return classify.from_hugging_face(Bert(self.config), self.tensors)


def write_model_folder(
    folder: Path, model: nn.Module, tokenizer: Tokenizer, extra: Mapping[str, Any]
) -> None:
    """Write a trained model. ``extra``: further fields of config.json."""
    if isinstance(model, classify.Classifier):
        architecture, tensors = "BertForSequenceClassification", classify.to_hugging_face(model)
    elif isinstance(model, masked_lm.MaskedLM):
        paired = model.next_sentence is not None
        architecture = "BertForPreTraining" if paired else "BertForMaskedLM"
        tensors = masked_lm.to_hugging_face(model)
    else:
        raise TypeError(f"no Hugging Face layout for {type(model).__name__}")
    folder.mkdir(parents=True, exist_ok=True)
    config = model.body.config
    ids = {f"{role}_token_id": tokenizer.special[role] for role in ("pad", "bos", "eos")
           if role in tokenizer.special}  # fmt: skip
    fields = {
        "architectures": [architecture],
        "dtype": "float32",
        **ARCHITECTURES["bert"].to_hugging_face(config),
        **ids,
        **extra,
    }
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    write_tensors(folder / WEIGHTS, tensors)
    tokenizer.save(folder, max_length=config.max_positions)


def read_model_folder(path: Path) -> ModelFolder:
    """Read a model folder. Raises InputError naming the file that is missing or malformed."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise InputError(f"{path} has no config.json; give a model's folder or a run's name")
    try:
        fields = json.loads(config_path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{config_path} is damaged: {error}") from None
    kind = fields.get("model_type")
    if kind not in ARCHITECTURES:
        hint = did_you_mean(str(kind), ARCHITECTURES)
        raise InputError(
            f"{config_path}: model_type {kind!r} is not supported{hint}; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[kind]
    config = architecture.from_hugging_face(fields)
    tokenizer = tokenizers.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces and the model "
            f"{config.vocab_size}; they don't belong together"
        )
    tensors = {_current_name(k): v for k, v in read_tensors(path / WEIGHTS).items()}
    return ModelFolder(path, fields, architecture, config, tensors, tokenizer)


def _current_name(name: str) -> str:
    """The first BERTs' files say gamma and beta, as TensorFlow does."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")
