"""GGUF files, which llama.cpp, Ollama and LM Studio open."""

from __future__ import annotations

from pathlib import Path

from llmctl.formats.gguf.reading import read_gguf
from llmctl.formats.gguf.writing import write_gguf_model


class Gguf:
    """A model with its tokenizer in one file."""

    name = "gguf"
    open = staticmethod(read_gguf)
    save = staticmethod(write_gguf_model)

    def recognises(self, path: Path) -> bool:
        """Whether a path is such a file, by its name."""
        return path.suffix == ".gguf" and path.is_file()
