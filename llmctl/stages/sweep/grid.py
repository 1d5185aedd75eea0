"""A sweep's grid: fields with their values, and the points that are their product, with names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.config import ALIASES, parse_value, put
from llmctl.errors import UsageError
from llmctl.reporting.fields import short_fields, short_value
from llmctl.workspace.files import sha256_json
from llmctl.workspace.names import shortened, slug

MAX_POINT_NAME = 70
"""Characters of a point's name."""
MAX_POINT_NAME_BYTES = 170
"""Bytes of a point's name: leaves room for a rung's budget and a seed behind it."""
OPENING, CLOSING_BRACKETS, QUOTES = "[{", "]}", "\"'"


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep."""

    name: str
    values: dict[str, Any]
    """By the whole names of the grid's fields."""

    @property
    def label(self) -> str:
        """``lr=3e-4, batch_size=16``."""
        leaves = short_fields(list(self.values))
        pairs = self.values.items()
        return ", ".join(f"{leaves[field]}={short_value(value)}" for field, value in pairs)


def parse_grid(grids: Iterable[str]) -> dict[str, list[Any]]:
    """``["training.lr=1e-4,3e-4", …]`` as values by field; a value is TOML, else text.

    >>> parse_grid(["training.lr=1e-4,3e-4", "arch=gpt,llama"])
    {'training.learning_rate': [0.0001, 0.0003], 'arch': ['gpt', 'llama']}
    """
    fields: dict[str, list[Any]] = {}
    for grid in grids:
        name, equals, text = (part.strip() for part in grid.partition("="))
        if not equals or not name:
            raise UsageError(
                f"--grid {grid!r} is not FIELD=VALUE,VALUE,…; write for example "
                "--grid training.lr=1e-4,3e-4"
            )
        key = ALIASES.get(name, name)
        if key in fields:
            raise UsageError(
                f"--grid gives {key} twice; write all its values in one, --grid {name}=VALUE,VALUE"
            )
        texts = split_values(text)
        if not all(texts):
            raise UsageError(
                f"--grid {grid}: a value is empty; write for example --grid {name}=VALUE,VALUE"
            )
        values = [parse_value(text) for text in texts]
        for number, value in enumerate(values):
            if value in values[:number]:
                raise UsageError(f"--grid {grid}: {texts[number]} is there twice; leave it out")
        fields[key] = values
    if not fields:
        raise UsageError(
            "--grid is missing: name a field and its values, for example "
            "--grid training.lr=1e-4,3e-4,1e-3"
        )
    return fields


def split_values(text: str) -> list[str]:
    """The parts between commas, but for commas in brackets and quotes.

    >>> split_values('1, [2, 3], "a,b"')
    ['1', '[2, 3]', '"a,b"']
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        else:
            depth += (character in OPENING) - (character in CLOSING_BRACKETS)
        if character == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def points(name: str, fields: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of the fields' values, the last field's changing fastest.

    A point's name tells its values; where it would be too long, or another's too, it ends with a
    digest of them.
    """
    leaves = short_fields(list(fields))
    combinations = [
        dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())
    ]
    names = [
        "-".join([name, *(f"{leaves[key]}-{_for_a_name(value)}" for key, value in values.items())])
        for values in combinations
    ]
    taken = Counter(names)
    return [
        Point(name if taken[name] == 1 and name == _shortened(name) else _cut(name, values), values)
        for name, values in zip(names, combinations, strict=True)
    ]


def tree_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """A point's values as a layer of a configuration."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        put(tree, key, value, "--grid")
    return tree


def _for_a_name(value: Any) -> str:
    text = short_value(value)
    # A sign is no separator: -1 and 1 are two values.
    sign = "-" if text.startswith("-") else ""
    return sign + slug(text, "empty")


def _cut(name: str, values: Mapping[str, Any]) -> str:
    digest = sha256_json(dict(values))[:8]
    return f"{_shortened(name, len(digest) + 1)}-{digest}"


def _shortened(name: str, room: int = 0) -> str:
    """A name with so much room left behind it."""
    return shortened(name, MAX_POINT_NAME - room, MAX_POINT_NAME_BYTES - room)
