"""Models as a folder keeps them, without the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.formats.base import Pretrained
from llmctl.formats.description import Purpose
from llmctl.formats.huggingface.tensors import export_model, import_model
from llmctl.models.spec import ModelSpec
from llmctl.tokenizers import learn


def kept(model: Any, kind: str, spec: ModelSpec) -> Pretrained:
    """A model that does something, through the names of Hugging Face."""
    config = model.body.config
    tensors = export_model(model.state_dict(), kind, spec, config)
    return Pretrained(
        path=Path("kept"),
        files=(Path("kept/config.json"), Path("kept/model.safetensors")),
        fields={},
        config=config,
        tokenizer=learn("characters", ["abc"], None),
        purpose=Purpose(kind),
        tensors=import_model(tensors, kind, spec, config),
        architecture=spec,
    )
