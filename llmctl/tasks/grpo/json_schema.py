"""JSON Schema: whether a value is as a schema says (draft 2020-12, the keywords that validate).

A keyword that is not known here is refused and not passed over: an answer would be rewarded that
doesn't do what was asked. Left out are remote references, formats and what depends on annotations
(``unevaluatedProperties`` and its like).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from llmctl.errors import InputError, did_you_mean

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
     "examples", "deprecated", "readOnly", "writeOnly"}
)  # fmt: skip
"""Keywords that decide nothing."""
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: TYPES["number"](v) and float(v).is_integer(),
}
_NUMBER, _TEXT, _LIST, _OBJECT = (TYPES[t] for t in ("number", "string", "array", "object"))


class JsonSchema:
    """A schema that values are checked by."""

    def __init__(self, schema: Any, source: str) -> None:
        """source: where it is from, for messages. Raises InputError for a schema that has what is
        not known here."""
        self.root, self._source = schema, source
        self._check(schema, "#")

    def accepts(self, value: Any) -> bool:
        """Whether a value is as the schema says."""
        return self._valid(value, self.root)

    def _check(self, schema: Any, place: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            raise InputError(
                f"{self._source}: {place} is no schema; write an object, true or false"
            )
        for name, content in schema.items():
            if name not in KEYWORDS and name not in ANNOTATIONS:
                raise InputError(
                    f"{self._source}: {place} has the keyword {name!r}, which is not understood"
                    f"{did_you_mean(name, KEYWORDS)}; leave it out"
                )
            self._check_keyword(name, content, f"{place}/{name}")

    def _check_keyword(self, name: str, content: Any, place: str) -> None:
        """Raises InputError for a keyword's value that can't be gone by."""
        if name in ("properties", "patternProperties", "$defs", "definitions"):
            for key, part in (content if isinstance(content, Mapping) else {}).items():
                self._check(part, f"{place}/{key}")
        elif name in ("anyOf", "allOf", "oneOf", "prefixItems"):
            for number, part in enumerate(content if isinstance(content, list) else []):
                self._check(part, f"{place}/{number}")
        elif name in ("items", "not", "additionalProperties", "contains", "if", "then", "else"):
            self._check(content, place)
        patterns = {"pattern": [content], "patternProperties": content}.get(name, [])
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise InputError(f"{self._source}: {place} is no pattern ({error})") from None
        if name == "$ref":
            self._resolved(content)
        named = [content] if isinstance(content, str) else content
        if name == "type" and not (isinstance(named, list) and set(named) <= set(TYPES)):
            raise InputError(
                f"{self._source}: {place} is {content!r}; use one of {', '.join(TYPES)}"
            )

    def _resolved(self, reference: Any) -> Any:
        """What a reference within the schema means."""
        found = self.root
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise InputError(f"{self._source}: $ref {reference!r} leads elsewhere; write it out")
        for part in reference.lstrip("#/").split("/") if reference != "#" else []:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise InputError(f"{self._source}: $ref {reference!r} leads nowhere")
            found = found[key]
        return found

    def _valid(self, value: Any, schema: Any) -> bool:
        if isinstance(schema, bool):
            return schema
        return all(
            KEYWORDS[name](self, value, content, schema)
            for name, content in schema.items()
            if name in KEYWORDS
        )

    def _type(self, value: Any, named: Any, _: Any) -> bool:
        return any(TYPES[n](value) for n in ([named] if isinstance(named, str) else named))

    def _properties(self, value: Any, properties: Any, _: Any) -> bool:
        return not _OBJECT(value) or all(
            self._valid(value[key], part) for key, part in properties.items() if key in value
        )

    def _pattern_properties(self, value: Any, patterns: Any, _: Any) -> bool:
        return not _OBJECT(value) or all(
            self._valid(entry, part)
            for pattern, part in patterns.items()
            for key, entry in value.items()
            if re.search(pattern, key)
        )

    def _additional(self, value: Any, part: Any, schema: Any) -> bool:
        if not _OBJECT(value):
            return True
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        return all(
            self._valid(entry, part)
            for key, entry in value.items()
            if key not in known and not any(re.search(pattern, key) for pattern in patterns)
        )

    def _items(self, value: Any, part: Any, schema: Any) -> bool:
        begin = len(schema.get("prefixItems", []))
        return not _LIST(value) or all(self._valid(entry, part) for entry in value[begin:])

    def _prefix_items(self, value: Any, parts: Any, _: Any) -> bool:
        return not _LIST(value) or all(
            self._valid(entry, part) for entry, part in zip(value, parts, strict=False)
        )

    def _contains(self, value: Any, part: Any, schema: Any) -> bool:
        if not _LIST(value):
            return True
        found = sum(self._valid(entry, part) for entry in value)
        return bool(schema.get("minContains", 1) <= found <= schema.get("maxContains", math.inf))

    def _if(self, value: Any, part: Any, schema: Any) -> bool:
        branch = "then" if self._valid(value, part) else "else"
        return self._valid(value, schema.get(branch, True))


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, and neither is true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if _OBJECT(one) and _OBJECT(other):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if _LIST(one) and _LIST(other):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(same_json(a, b) for a, b in pairs)
    return (type(one) is type(other) and one == other) or (
        _NUMBER(one) and _NUMBER(other) and one == other
    )


def _multiple(value: Any, unit: Any) -> bool:
    quotient = value / unit
    return math.isfinite(quotient) and quotient == int(quotient)


def _unique(values: list[Any]) -> bool:
    return not any(same_json(one, other) for n, one in enumerate(values) for other in values[:n])


def _sized(kind: Any, holds: Any) -> Any:
    """A keyword about values of one kind."""
    return lambda schema, value, content, _: not kind(value) or holds(value, content)


KEYWORDS: dict[str, Any] = {
    "type": JsonSchema._type,
    "enum": lambda s, v, content, _: any(same_json(v, entry) for entry in content),
    "const": lambda s, v, content, _: same_json(v, content),
    "$ref": lambda s, v, content, _: s._valid(v, s._resolved(content)),
    "anyOf": lambda s, v, parts, _: any(s._valid(v, part) for part in parts),
    "allOf": lambda s, v, parts, _: all(s._valid(v, part) for part in parts),
    "oneOf": lambda s, v, parts, _: sum(s._valid(v, part) for part in parts) == 1,
    "not": lambda s, v, part, _: not s._valid(v, part),
    "if": JsonSchema._if,
    "then": lambda s, v, content, _: True,
    "else": lambda s, v, content, _: True,
    "properties": JsonSchema._properties,
    "patternProperties": JsonSchema._pattern_properties,
    "additionalProperties": JsonSchema._additional,
    "required": _sized(_OBJECT, lambda v, names: all(name in v for name in names)),
    "minProperties": _sized(_OBJECT, lambda v, least: len(v) >= least),
    "maxProperties": _sized(_OBJECT, lambda v, most: len(v) <= most),
    "items": JsonSchema._items,
    "prefixItems": JsonSchema._prefix_items,
    "contains": JsonSchema._contains,
    "minContains": lambda s, v, content, _: True,
    "maxContains": lambda s, v, content, _: True,
    "minItems": _sized(_LIST, lambda v, least: len(v) >= least),
    "maxItems": _sized(_LIST, lambda v, most: len(v) <= most),
    "uniqueItems": _sized(_LIST, lambda v, wanted: not wanted or _unique(v)),
    "minimum": _sized(_NUMBER, lambda v, least: v >= least),
    "maximum": _sized(_NUMBER, lambda v, most: v <= most),
    "exclusiveMinimum": _sized(_NUMBER, lambda v, least: v > least),
    "exclusiveMaximum": _sized(_NUMBER, lambda v, most: v < most),
    "multipleOf": _sized(_NUMBER, _multiple),
    "minLength": _sized(_TEXT, lambda v, least: len(v) >= least),
    "maxLength": _sized(_TEXT, lambda v, most: len(v) <= most),
    "pattern": _sized(_TEXT, lambda v, pattern: re.search(pattern, v) is not None),
}
"""What each keyword asks of a value: called with the schema, the value, the keyword's content and
the object that it stands in."""
