"""An n-gram model as a folder: config.json, ngram.safetensors and the tokenizer.

No other program has this layout, so config.json says ``llmctl_ngram``. The tables, whose names are
in llmctl/models/ngram/arrays.py, are read where they lie, by memory mapping: a model is ready at
once, whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from llmctl import tokenizers
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import TOKENIZER, Purpose, check_tokenizer
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.models.ngram.arrays import arrays_of
from llmctl.models.ngram.model import NgramModel
from llmctl.models.ngram.smoothing import NgramConfig
from llmctl.parsing import read_json_object
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import to_json
from llmctl.workspace.tensors import read_tensor, tensor_heads, write_tensors

MODEL_TYPE = "llmctl_ngram"
NGRAM_WEIGHTS = "ngram.safetensors"
COPY_FOLDER_AGAIN = "copy the whole folder again from where it was made"


class NgramFormat:
    """Folders of n-gram models."""

    name = "ngram"

    def recognises(self, path: Path) -> bool:
        """Whether a folder's config.json says that it holds an n-gram model."""
        try:
            fields = read_json_object(path / "config.json")
        except (OSError, InputError):
            return False
        return fields.get("model_type") == MODEL_TYPE

    def open(self, path: Path) -> Pretrained:
        """An n-gram model. Raises InputError naming the file that is missing or damaged."""
        fields = read_json_object(path / "config.json", COPY_FOLDER_AGAIN)
        try:
            config = NgramConfig.model_validate(
                {name: fields.get(name) for name in NgramConfig.model_fields}
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{path / 'config.json'} describes no n-gram model ({where}: {first['msg']}); "
                f"{COPY_FOLDER_AGAIN}"
            ) from None
        tokenizer = tokenizers.load(path)
        check_tokenizer(path, tokenizer, fields.get(TOKENIZER))
        if "bos" in tokenizer.special:  # every document has begun so
            tokenizer = tokenizer.for_decoder()
        weights = path / NGRAM_WEIGHTS
        return Pretrained(
            path=path,
            files=(path / "config.json", weights),
            fields=fields,
            config=config,
            tokenizer=tokenizer,
            purpose=Purpose("ngram"),
            tensors=LazyTensors(
                {name: partial(read_tensor, weights, name) for name in tensor_heads(weights)}
            ),
        )

    def save(
        self, folder: Path, model: NgramModel, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Write a trained model. extra: its configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        fields = {
            "model_type": MODEL_TYPE,
            "vocab_size": model.vocab_size,
            **extra,
            TOKENIZER: tokenizer.digest(),
        }
        text = to_json(fields, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        tensors = {name: torch.from_numpy(array) for name, array in arrays_of(model).items()}
        write_tensors(folder / NGRAM_WEIGHTS, tensors, {"format": MODEL_TYPE})
        tokenizer.save(folder)
