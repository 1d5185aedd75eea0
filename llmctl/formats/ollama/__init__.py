"""Folders that ``ollama create`` takes: a GGUF file, and a Modelfile that says how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.gguf import Gguf
from llmctl.formats.ollama.modelfile import GGUF_FILE, MODELFILE, modelfile
from llmctl.tokenizers import Tokenizer


class Ollama:
    """A GGUF file and its Modelfile."""

    name = "ollama"

    def recognises(self, path: Path) -> bool:
        """Whether both are there."""
        return (path / MODELFILE).is_file() and (path / GGUF_FILE).is_file()

    def open(self, path: Path) -> Pretrained:
        """The model of the GGUF file."""
        return Gguf().open(path / GGUF_FILE)

    def save(
        self, folder: Path, model: Any, tokenizer: Tokenizer, extra: Mapping[str, Any]
    ) -> None:
        """Write a trained language model. extra: as ``Gguf.save`` takes it.

        Raises InputError for a model that doesn't write, or whose chat template Ollama can't be
        told.
        """
        if not hasattr(model, "logits"):
            raise InputError("Ollama is for models that write; export to gguf, hf or onnx")
        text = modelfile(tokenizer, model.body.config.max_positions)
        folder.mkdir(parents=True, exist_ok=True)
        Gguf().save(folder / GGUF_FILE, model, tokenizer, extra)
        (folder / MODELFILE).write_text(text, encoding="utf-8")
