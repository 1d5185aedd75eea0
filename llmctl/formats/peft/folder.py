"""Adapter folders in PEFT's layout: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.huggingface.reading import read_folder
from llmctl.formats.huggingface.weights import AGAIN, PICKLED, WEIGHTS_FILE
from llmctl.formats.lazy_tensors import LazyTensors
from llmctl.formats.peft.reading import PICKLED_ADAPTER, Reading
from llmctl.formats.peft.virtual import virtual_in
from llmctl.formats.peft.writing import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_RECORD,
    Learned,
    write_adapter,
)
from llmctl.formats.sentence_transformers.folder import (
    DENSE_FOLDER,
    SETFIT,
    SentenceTransformers,
    with_dense,
)
from llmctl.parsing import read_json_object
from llmctl.tokenizers import Tokenizer
from llmctl.workspace.files import write_json

MODEL_FILES = (WEIGHTS_FILE, PICKLED, f"{WEIGHTS_FILE}.index.json", f"{PICKLED}.index.json")


@dataclass(frozen=True)
class Adapter:
    """What was learned beside a model."""

    learned: Learned
    base: Pretrained
    """The frozen model."""
    heads: Mapping[str, Tensor]
    """Layers trained whole, in Hugging Face's names."""
    task_type: str
    """The task as PEFT calls it: ``CAUSAL_LM``, ``SEQ_CLS`` and so on."""

    def write(self, folder: Path) -> None:
        """Write the two files of the layout."""
        write_adapter(
            folder, self.learned, base=self.base, heads=self.heads, task_type=self.task_type
        )


class Peft:
    """Folders of adapters, as PEFT writes and opens them."""

    name = "peft"

    def recognises(self, path: Path) -> bool:
        """Whether there is the description of an adapter."""
        return (path / ADAPTER_CONFIG).is_file()

    def open(self, path: Path) -> Pretrained:
        """The model that an adapter and its base are together.

        Raises InputError where the base isn't there, or an adapter does what isn't done here.
        """
        described = path / ADAPTER_CONFIG
        fields = read_json_object(described, AGAIN)
        base = _base_of(path, fields)
        beside: dict[str, Any] = {}
        if SentenceTransformers().recognises(base):
            beside = SentenceTransformers.described(base)
        reading = Reading(path, fields, beside)
        model = read_folder(base, reading)
        model = replace(model, path=path, files=(described, *reading.weights_files, *model.files))
        if model.fields.get(SETFIT) is True:
            model = with_dense(path / DENSE_FOLDER, model)
        if not reading.is_prompt:
            return model
        shape, name, read = virtual_in(model, fields, reading)
        tensors = {key: partial(model.tensors.__getitem__, key) for key in model.tensors}
        return replace(
            model, virtual=shape, before=shape.count, tensors=LazyTensors({**tensors, name: read})
        )

    def save(
        self, folder: Path, model: Adapter, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Write an adapter with the tokenizer. extra: the description of the model that it makes of
        its base, by which it is opened here."""
        model.write(folder)
        tokenizer.save(folder, max_length=model.base.config.max_positions)
        write_json(folder / PEFT_RECORD, dict(extra))


def _base_of(path: Path, fields: Mapping[str, Any]) -> Path:
    """The folder of the model that an adapter is for: its own, where the model's weights lie in it
    too."""
    if any((path / name).is_file() for name in MODEL_FILES):
        return path
    named = fields.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(
            f"{path / ADAPTER_CONFIG} names no base_model_name_or_path; write the folder of the "
            "model that the adapter is for there"
        )
    for folder in (path / named, Path(named)):
        for inner in (folder, folder / "model"):
            if (inner / "config.json").is_file() and inner.resolve() != path.resolve():
                return inner
    raise InputError(
        f"{path / ADAPTER_CONFIG}: the adapter is for the model {named!r}, and there is no such "
        "folder; get that model, and write its folder into base_model_name_or_path"
    )


__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "PICKLED_ADAPTER", "Adapter", "Peft"]
