"""Model folders in Hugging Face's layout."""

from __future__ import annotations

from pathlib import Path

from llmctl.formats.huggingface.reading import read_folder
from llmctl.formats.huggingface.writing import write_model_folder


class HuggingFace:
    """What transformers writes and opens, and llmctl wherever transformers has such a class."""

    name = "huggingface"
    open = staticmethod(read_folder)
    save = staticmethod(write_model_folder)

    def recognises(self, path: Path) -> bool:
        """Whether there is a description."""
        return (path / "config.json").is_file()
