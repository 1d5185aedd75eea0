"""Model folders in Hugging Face's layout: config.json, model.safetensors and the tokenizer.

What llmctl trains is always kept like this, so ``transformers`` opens it with no export, and a
BERT made elsewhere can be given wherever a run is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from llmctl import tokenizers
from llmctl.errors import InputError, did_you_mean
from llmctl.models import ARCHITECTURES, Architecture
from llmctl.models.bert import Bert
from llmctl.objectives import classify, masked_lm
from llmctl.tokenizers import Tokenizer
from llmctl.training.checkpoints import read_tensors, write_tensors

WEIGHTS = "model.safetensors"
MAX_LENGTH, TOKENIZER = "llmctl_max_length", "llmctl_tokenizer"
"""Fields of config.json that only llmctl writes: tokens trained on, and the tokenizer's digest."""


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
        names = self.fields.get("id2label")
        known = names if isinstance(names, dict) else {}
        return [str(known.get(str(number), f"LABEL_{number}")) for number in range(count)]

    @property
    def max_length(self) -> int:
        """Tokens of text that the model was trained on, or can take."""
        most = int(self.config.max_positions)
        given = self.fields.get(MAX_LENGTH)
        return min(given, most) if isinstance(given, int) else most

    def masked_lm(self) -> masked_lm.MaskedLM:
        """The model with the heads of pretraining. Raises InputError if it has none."""
        with self._fitting():
            return masked_lm.from_hugging_face(Bert(self.config), self.tensors)

    def classifier(self) -> classify.Classifier:
        """The model with its classification head. Raises InputError if it has none."""
        with self._fitting():
            return classify.from_hugging_face(Bert(self.config), self.tensors)

    def new_classifier(
        self,
        num_classes: int,
        *,
        dropout: float,
        class_weights: Sequence[float] | None,
        scratch: bool,
    ) -> classify.Classifier:
        """The body with a new classification head, and with random weights from ``scratch``."""
        with self._fitting():
            return classify.start_from(
                Bert(self.config.replace(dropout=dropout)),
                None if scratch else self.tensors,
                num_classes,
                dropout=dropout,
                class_weights=class_weights,
            )

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Weights of another shape than config.json says are an InputError."""
        try:
            yield
        except (RuntimeError, KeyError, ValueError) as error:
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.path / WEIGHTS} is not the model that config.json describes ({reason}); "
                "copy the whole folder again from where it was made"
            ) from None


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
        TOKENIZER: tokenizer.digest(),
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
    if not isinstance(fields, dict):
        raise InputError(f"{config_path} is damaged: it holds no table of fields")
    kind = fields.get("model_type")
    if kind not in list(ARCHITECTURES):  # which a list, that has no hash, can be asked of
        hint = did_you_mean(str(kind), ARCHITECTURES)
        raise InputError(
            f"{config_path}: model_type {kind!r} is not supported{hint}; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[kind]
    try:
        config = architecture.from_hugging_face(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{config_path} describes no BERT: {f'{where}: ' if where else ''}{reason}; copy it "
            "again from where it was made"
        ) from None
    tokenizer = tokenizers.load(path)
    _check_tokenizer(path, tokenizer, config.vocab_size, fields)
    tensors = {_current_name(k): v for k, v in read_tensors(path / WEIGHTS).items()}
    return ModelFolder(path, fields, architecture, config, tensors, tokenizer)


def _check_tokenizer(
    path: Path, tokenizer: Tokenizer, vocab_size: int, fields: Mapping[str, Any]
) -> None:
    """Raises InputError if the model was trained with another tokenizer, as far as can be told.

    Others pad their vocabularies, so a model of theirs may have more rows than pieces; ours don't.
    """
    ours, pieces = MAX_LENGTH in fields, tokenizer.vocab_size
    if pieces > vocab_size or (ours and pieces != vocab_size):
        raise InputError(
            f"{path}: the tokenizer has {pieces} pieces and the model {vocab_size}; they don't "
            "belong together: copy the tokenizer again from where the model was made"
        )
    if fields.get(TOKENIZER, digest := tokenizer.digest()) != digest:
        raise InputError(
            f"{path}: the tokenizer is not the one that the model was trained with (its digest "
            "differs from config.json's); they don't belong together: copy it again from where "
            "the model was made"
        )


def _current_name(name: str) -> str:
    """The first BERTs' files say gamma and beta, as TensorFlow does."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")
