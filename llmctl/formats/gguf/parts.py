"""A model in several GGUF files, as llama-gguf-split makes them: ``NAME-00001-of-00003.gguf`` and
those beside it.

The first has the head of the whole model. Each says its number, counted from 0 (``split.no``), how
many there are (``split.count``), and how many tensors all have together (``split.tensors.count``).
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.gguf.file import AGAIN, GgufFile

SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""What parts are called: the model's name, the part's number counted from 1, and their count."""


class GgufParts(Mapping[str, Tensor]):
    """A model's values and tensors, of one file or of all parts that belong to one."""

    def __init__(self, path: Path) -> None:
        """path: the file, or any of the parts.

        Raises InputError naming the part that is missing, damaged, or of another model.
        """
        asked = GgufFile(path)
        count = _whole_number(asked, SPLIT_COUNT, 0)
        parts = [asked] if count in (0, 1) else _all_parts(asked, count)
        self.path = path
        self.paths = tuple(part.path for part in parts)
        """The files, in the order of their numbers."""
        self.head: Mapping[str, Any] = parts[0].head
        self._files = {name: part for part in parts for name in part}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: part.places[name].shape for name, part in self._files.items()}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor as fp32. Raises InputError where its numbers are not finite."""
        return self._files[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files


def parts_beside(name: str) -> list[str]:
    """The names of the other parts of the model that a file is one of by its name, with its folder;
    none where it is whole."""
    folder, slash, file = name.rpartition("/")
    named = SPLIT_NAME.fullmatch(file)
    if named is None:
        return []
    all_names = (part_name(named[1], n, int(named[3])) for n in range(1, int(named[3]) + 1))
    return [folder + slash + part for part in all_names if part != file]


def part_name(stem: str, number: int, count: int) -> str:
    """What a part of a model is called, its number counted from 1."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def _all_parts(asked: GgufFile, count: int) -> list[GgufFile]:
    """All parts of the model that one is of. Raises InputError where they are not whole."""
    named = SPLIT_NAME.fullmatch(asked.path.name)
    if named is None or int(named[3]) != count:
        raise InputError(
            f"{asked.path} is one of {count} parts of a model, which are found by their names; "
            f"call it NAME-0000N-of-{count:05}.gguf, as the others beside it"
        )
    paths = [
        asked.path.with_name(part_name(named[1], number, count)) for number in range(1, count + 1)
    ]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise InputError(
            f"{missing} is missing, one of the {count} parts of the model; put all into one folder"
        )
    parts = [asked if path == asked.path else GgufFile(path) for path in paths]
    total = _whole_number(parts[0], SPLIT_TENSORS)
    for number, part in enumerate(parts):
        said = (SPLIT_NUMBER, number), (SPLIT_COUNT, count), (SPLIT_TENSORS, total)
        for name, expected in said:
            if (value := _whole_number(part, name)) != expected:
                raise InputError(
                    f"{part.path}: {name} is {value}, not {expected} as the other parts and its "
                    f"name say; {AGAIN}"
                )
    _check_tensors(parts, total)
    return parts


def _check_tensors(parts: list[GgufFile], total: int) -> None:
    """Raises InputError unless the parts have so many tensors together, each in one of them."""
    together = ChainMap(*(part.places for part in parts))
    for part in parts:
        twice = next((name for name in part if together[name] is not part.places[name]), None)
        if twice is not None:
            raise InputError(f"{part.path} has the tensor {twice}, as another part has; {AGAIN}")
    if len(together) != total:
        raise InputError(
            f"{parts[0].path}: {SPLIT_TENSORS} is {total}, and all {len(parts)} parts have "
            f"{len(together)} tensors; {AGAIN}"
        )


def _whole_number(file: GgufFile, name: str, default: int | None = None) -> int:
    value = file.head.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        said = "missing" if value is None else "not a whole number"
        raise InputError(f"{file.path}: {name} is {said}; {AGAIN}")
    return value
