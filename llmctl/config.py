"""Configurations: frozen, keyword-only, checked when made, an unknown key an error.

A stage's configuration is a tree of ``Config`` classes. It is resolved from, in rising order:
the defaults, a preset, the stage's table of a recipe (TOML), options and ``--set key=value``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticUndefined

from llmctl.errors import ConfigError, InputError, UsageError, did_you_mean
from llmctl.parsing import MAX_DEPTH, Malformed, parse_toml
from llmctl.reporting.units import parse_duration, parse_size

# Marks fields that change how a stage runs but not what it makes: left out of fingerprints.
NOT_IDENTITY: dict[str, Any] = {"identity": False}

ALIASES = {"training.lr": "training.learning_rate"}
"""Short names that people type, and the field each stands for."""


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds)]
"""A duration: a number of seconds, or text such as ``10m``, ``1h30m``."""


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A size: a number of bytes, or text such as ``64MB``, ``1.5GB``."""


def _column(value: object) -> object:
    return str(value) if type(value) is int else value


ColumnName = Annotated[str, BeforeValidator(_column)]
"""A column of a table by its name, or by its number: ``text_column = 2`` in a recipe."""


LARGEST_COUNT = (1 << 63) - 1


class Config(BaseModel):
    """Base of every configuration."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        defer_build=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _words(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` and ``false`` where a field's words are on and off."""
        if isinstance(value, bool) and info.field_name is not None:
            known = words_of(cls.model_fields[info.field_name].annotation)
            if {"on", "off"} <= set(known):
                return "on" if value else "off"
        return value

    SIZES: ClassVar[tuple[float, float]] = (1e-37, 1e38)
    """Bounds of the numbers that are computed with in 32 bits."""

    @field_validator("*")
    @classmethod
    def _is_held(cls, value: Any) -> Any:
        """Numbers that only Python holds would fail where they are used, or be 0 or infinite."""
        smallest, largest = cls.SIZES
        if type(value) is float and value and not smallest <= abs(value) <= largest:
            raise ValueError(
                f"Input should be 0, or from {smallest} to {largest} in size, as numbers of 32 bits"
            )
        if type(value) is int and abs(value) > LARGEST_COUNT:
            raise ValueError("Input should be a number of 63 bits at most")
        return value

    def identity(self) -> dict[str, Any]:
        """The fields that decide what a stage makes, as JSON values."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("identity") is False:
                continue
            value = getattr(self, name)
            values[name] = value.identity() if isinstance(value, Config) else value
        return values

    def defaults(self) -> dict[str, Any]:
        """What the fields of ``identity`` are where nothing is given, without those that must
        be."""
        values: dict[str, Any] = {}
        for name in self.identity():
            value = getattr(self, name)
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if isinstance(default, Config):
                values[name] = default.identity()
            elif default is not PydanticUndefined:
                values[name] = default
            elif isinstance(value, Config):
                values[name] = value.defaults()
        return values

    def asked(self) -> dict[str, Any]:
        """The fields of ``identity`` that differ from their defaults, by dotted names."""
        return differing(flat(self.identity()), flat(self.defaults()))

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed."""
        return type(self).model_validate({**self.model_dump(), **changes})


C = TypeVar("C", bound=Config)


def build(kind: type[C], *layers: Mapping[str, Any]) -> C:
    """A configuration from layers of values, later ones over earlier ones.

    Raises ConfigError naming the field, what was given and the closest known name; the recipe
    too, where the field is from one.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, _in_full(layer))
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        where = error.errors(include_url=False)[0]["loc"]
        # Where several layers have the field, the last one's value was refused.
        source = next((layer for layer in reversed(layers) if _has(_in_full(layer), where)), None)
        prefix = f"recipe {source.path}: " if isinstance(source, Recipe) else ""
        raise ConfigError(prefix + _explain(kind, error)) from None


def _in_full(layer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of values with the names that aliases stand for."""
    return {
        ALIASES.get(prefix + key, prefix + key).removeprefix(prefix): (
            _in_full(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        )
        for key, value in layer.items()
    }


def _has(tree: Any, where: Sequence[int | str]) -> bool:
    for key in where:
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay one tree of values over another, in place."""
    for key, value in layer.items():
        if isinstance(value, Mapping):
            branch = into.get(key)
            into[key] = dict(branch) if isinstance(branch, Mapping) else {}
            merge(into[key], value)
        else:
            into[key] = value


class Recipe(dict[str, Any]):
    """A stage's table of a recipe, which knows its file."""

    def __init__(self, table: Mapping[str, Any], path: Path) -> None:
        super().__init__(table)
        self.path = path


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["training.max_steps=100", …]`` as a tree; values are TOML, else text.

    >>> parse_assignments(["training.lr=3e-4", "model.activation=relu"])
    {'training': {'learning_rate': 0.0003}, 'model': {'activation': 'relu'}}
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = ALIASES.get(key.strip(), key.strip())
        if not equals or not key:
            raise UsageError(
                f"--set {assignment!r} is not KEY=VALUE; write for example "
                "--set training.max_steps=1000"
            )
        put(tree, key, parse_value(text.strip()))
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of values by dotted names.

    >>> flat({"training": {"max_steps": 5}, "seed": 1})
    {'training.max_steps': 5, 'seed': 1}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


def differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values that have no default, or another."""
    return {k: v for k, v in values.items() if k not in defaults or defaults[k] != v}


def as_assignments(tree: Mapping[str, Any]) -> list[str]:
    """The inverse of ``parse_assignments``.

    >>> as_assignments({"training": {"learning_rate": 0.0003}, "seed": 1})
    ['training.learning_rate=0.0003', 'seed=1']
    """
    # TOML's numbers, texts and lists are written as JSON's are; it has no null.
    return [
        f"{key}={'none' if value is None else json.dumps(value, ensure_ascii=False)}"
        for key, value in flat(tree).items()
    ]


def put(tree: dict[str, Any], key: str, value: Any, option: str = "--set") -> None:
    """Set a dotted key in a tree. Raises UsageError where a value stands in its way."""
    *parents, leaf = key.split(".")
    if len(parents) > MAX_DEPTH:
        raise UsageError(f"{option} {key[:60]}…: no field is nested so deep")
    branch = tree
    for parent in parents:
        branch = branch.setdefault(parent, {})
        if not isinstance(branch, dict):
            raise UsageError(f"{option} {key}: {parent} is already set to a value")
    branch[leaf] = value


def parse_value(text: str) -> Any:
    """A value of ``--set``: TOML, else text."""
    with contextlib.suppress(Malformed):
        table = parse_toml(f"value = {text}")
        if len(table) == 1:  # a line break could have brought another key
            return table["value"]
    # Python's and shells' spellings that TOML lacks, and words without quotes.
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def take(layer: Mapping[str, Any], *keys: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Names that a stage is given beside its configuration (``arch``, ``from``), where a layer of
    values has them, and the layer without them; a recipe stays one. A text in the place of a table
    stands for its one key: ``data`` for ``data.file``.

    Raises ConfigError if one is no text.
    """
    values: dict[str, str] = {}
    recipe = layer if isinstance(layer, Recipe) else None
    rest: dict[str, Any] = {}
    merge(rest, layer)
    for key in keys:
        table, _, leaf = key.rpartition(".")
        branch = rest.get(table) if table else rest
        if isinstance(branch, dict) and leaf in branch:
            values[key] = branch.pop(leaf)
        elif isinstance(branch, str):
            values[key] = rest.pop(table)
        if not isinstance(values.get(key, ""), str):
            where = f"recipe {recipe.path}: " if recipe else ""
            raise ConfigError(f"{where}{key}: write a name, and {values[key]!r} was given")
    return values, Recipe(rest, recipe.path) if recipe else rest


def read_recipe(path: Path, stage: str) -> Recipe:
    """A stage's table of a recipe file. Raises InputError if the file can't be read."""
    tables = read_tables(path)
    table = tables.get(stage)
    if table is None:
        known = ", ".join(f"[{name}]" for name in tables) or "no tables"
        raise InputError(
            f"recipe {path} has no table [{stage}] (it has {known}); add one, empty for defaults"
        )
    if not isinstance(table, dict):
        raise InputError(f"recipe {path}: {stage} is a value; write a table [{stage}]")
    return Recipe(table, path)


def read_tables(path: Path) -> dict[str, Any]:
    """All of a recipe file. Raises InputError if it can't be read."""
    try:
        return parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"recipe {path}: no such file") from None
    except OSError as error:
        raise InputError(f"recipe {path} can't be read: {error}") from None
    except Malformed as error:
        raise InputError(f"recipe {path} is not TOML: {error}") from None


def words_of(annotation: Any) -> list[str]:
    """The words among which a field has one, e.g. auto, on and off."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [word for part in get_args(annotation) for word in words_of(part)]


def field_names(kind: type[Config], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration, as ``--set`` takes it."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        nested = config_of(field.annotation)
        if nested is None:
            names.append(prefix + name)
        else:
            names.extend(field_names(nested, f"{prefix}{name}."))
    return names


def config_of(annotation: Any) -> type[Config] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


def _names_beside(kind: type[Config], where: Sequence[int | str]) -> list[str]:
    """The dotted names, tables among them, that are as deep as an unknown one and beside it."""
    prefix, level = "", kind
    for parent in where[:-1]:
        nested = config_of(level.model_fields[str(parent)].annotation)
        if nested is None:
            return []
        prefix, level = f"{prefix}{parent}.", nested
    aliases = [name for name in ALIASES if name.rpartition(".")[0] == prefix.rstrip(".")]
    return [*(prefix + name for name in level.model_fields), *aliases]


def _field_of(kind: type[Config], where: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place of an error without the alternative of a field that it belongs to."""
    level: type[Config] | None = kind
    for number, part in enumerate(where, 1):
        field = level.model_fields.get(str(part)) if level is not None else None
        if field is None:
            return where
        level = config_of(field.annotation)
        alternatives = [a for a in get_args(field.annotation) if a is not type(None)]
        if level is None and get_origin(field.annotation) in UNIONS and len(alternatives) > 1:
            return where[:number]
    return where


UNIONS = (Union, UnionType)


def _explain(kind: type[Config], error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    first = errors[0]
    where = _field_of(kind, first["loc"])
    key = ".".join(map(str, where))
    if first["type"] == "extra_forbidden":
        known = field_names(kind)
        beside = _names_beside(kind, first["loc"])
        hint = (
            did_you_mean(key, beside) or did_you_mean(key, known) or f"; known: {', '.join(known)}"
        )
        return f"unknown key {key!r}{hint}"
    # Of a field that may be one thing or another, what each would have to be.
    messages = [e["msg"] for e in errors if _field_of(kind, e["loc"]) == where]
    messages[1:] = [message.removeprefix("Input should be ") for message in messages[1:]]
    message = ", or ".join(dict.fromkeys(messages)).removeprefix("Value error, ")
    what_given = "" if isinstance(first["input"], dict) else f", and {first['input']!r} was given"
    return f"{key}: {message}{what_given}" if key else message
