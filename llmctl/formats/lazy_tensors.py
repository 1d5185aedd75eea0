"""A model's tensors as its folder has them: each is read when it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.models.weight_map import PartsReader, TensorFiles
from llmctl.workspace.tensors import MappedFiles


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is looked up, and kept by nobody."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self.readers = dict(readers)

    def __getitem__(self, name: str) -> Tensor:
        return self.readers[name]()

    def mapped_for(self, name: str, own: Tensor, files: MappedFiles) -> Tensor | None:
        """A tensor of ours where it lies in a file, if it lies there so; see ``PartsReader``."""
        reader = self.readers.get(name)
        return reader.mapped_for(own, files) if isinstance(reader, PartsReader) else None

    @property
    def by_threads(self) -> bool:
        """Whether several threads may read at once."""
        return all(
            isinstance(one, PartsReader) and isinstance(one.tensors, TensorFiles)
            for one in self.readers.values()
        )

    def into(self, name: str, own: Tensor, files: dict[Path, Any]) -> bool:
        """Read a tensor into one of ours, where its reader can; returns whether it could."""
        reader = self.readers[name]
        return isinstance(reader, PartsReader) and reader.into(own, files)

    def __contains__(self, name: object) -> bool:
        return name in self.readers

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)
