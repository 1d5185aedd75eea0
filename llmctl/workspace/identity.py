"""Identity: what was asked for, by which the same command finds what it made before.

It is what a configuration has other than the defaults, and the digests of the inputs. The manifest
keeps both, and the defaults of its day beside them: a field that came later leaves what was made
before it up to date as long as it has its default, and a default that changed since is seen.

Manifests of format 1 have no such record. Their fingerprint was the digest of every field that
there was, so it is made again from what is asked for now, without the fields that came later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.config import Config, differing, flat
from llmctl.workspace.manifests import InputRecord, Manifest, fingerprint

SETTLED = frozenset({"model.vocab_size", "training.learning_rate"})
"""Fields that a stage fills in where they are left open, so that a configuration of format 1 does
not tell what was asked for."""


@dataclass(frozen=True)
class Difference:
    """A field, or an input by its role, that isn't what an artefact was made with."""

    key: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.key} {self.before}, now {self.now}"


@dataclass(frozen=True)
class Identity:
    """What is asked of a stage."""

    stage: str
    values: Mapping[str, Any]
    """Every field that decides the content."""
    defaults: Mapping[str, Any]
    """The defaults of those that have one."""
    inputs: Sequence[InputRecord]

    @classmethod
    def of(cls, stage: str, config: Config, inputs: Sequence[InputRecord], **more: Any) -> Identity:
        """What a configuration asks for. more: what is asked beside it."""
        return cls(stage, {**config.identity(), **more}, config.defaults(), list(inputs))

    @property
    def given(self) -> dict[str, Any]:
        """What differs from the defaults, by dotted names."""
        return differing(self._flat(self.values), self._flat(self.defaults))

    @property
    def left(self) -> dict[str, Any]:
        """What is as the defaults have it."""
        given = self.given
        return {k: v for k, v in self._flat(self.values).items() if k not in given}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.stage, self.given, self.inputs)

    @staticmethod
    def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(json.dumps(flat(tree)))
        return values

    def changed(self, values: Mapping[str, Any]) -> Identity:
        """With other values of some fields, by dotted names."""
        tree = json.loads(json.dumps(dict(self.values)))
        for key, value in values.items():
            *tables, leaf = key.split(".")
            branch = tree
            for table in tables:
                branch = branch[table]
            branch[leaf] = value
        return Identity(self.stage, tree, self.defaults, self.inputs)

    def made(self, manifest: Manifest) -> bool:
        """Whether an artefact is what is asked for."""
        if manifest.identity is None:
            then = _without_later(self.values, self.defaults, manifest.config)
            return fingerprint(self.stage, then, self.inputs) == manifest.fingerprint
        same_inputs = (
            fingerprint(self.stage, manifest.identity, self.inputs) == manifest.fingerprint
        )
        return same_inputs and not any(self._options(manifest))

    def recorded(self, manifest: Manifest) -> Manifest:
        """The manifest of an artefact that is what is asked for, with the identity in it."""
        return manifest.model_copy(
            update={
                "fingerprint": self.fingerprint,
                "identity": self.given,
                "defaults": self.left,
            }
        )

    def differences(self, manifest: Manifest) -> list[Difference]:
        """What an artefact was made with that isn't what is asked for now."""
        options = list(self._options(manifest))
        if manifest.identity is None:
            # Fields that the stage has filled in are told of where nothing else is.
            chosen = {*SETTLED, *(manifest.config.get("chosen") or ())}
            options = [o for o in options if o.key not in chosen] or options
        return [*options, *self._inputs(manifest)]

    def _options(self, manifest: Manifest) -> Iterator[Difference]:
        given, now = self.given, self._flat(self.values)
        if manifest.identity is None:
            before = {k: v for k, v in flat(manifest.config).items() if k in now}
            gone = {}
        else:
            before = {**manifest.defaults, **manifest.identity}
            gone = {k: v for k, v in manifest.identity.items() if k not in now}
        for key, value in now.items():
            if key in before and before[key] != value:
                yield Difference(key, _shown(before[key]), _shown(value))
            elif key not in before and key in given:
                yield Difference(key, "unset", _shown(value))
        for key, value in gone.items():
            yield Difference(key, _shown(value), "unset")

    def _inputs(self, manifest: Manifest) -> Iterator[Difference]:
        before, now = _by_role(manifest.inputs), _by_role(self.inputs)
        for role in dict.fromkeys([*before, *now]):
            old, new = before.get(role, []), now.get(role, [])
            if role == "tokenizer" and not new:  # it was learned, and is no input
                continue
            if [r.digest for r in old] == [r.digest for r in new]:
                continue
            names = [", ".join(r.name for r in records) or "none" for records in (old, new)]
            if names[0] == names[1]:
                names = [
                    f"{name} ({', '.join(r.digest[:12] for r in records)})"
                    for name, records in zip(names, (old, new), strict=True)
                ]
            yield Difference(role, *names)


def _by_role(records: Sequence[InputRecord]) -> dict[str, list[InputRecord]]:
    roles: dict[str, list[InputRecord]] = {}
    for record in records:
        roles.setdefault(record.role, []).append(record)
    return roles


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def _without_later(
    values: Mapping[str, Any], defaults: Mapping[str, Any], then: Mapping[str, Any]
) -> dict[str, Any]:
    """Values without the fields that a configuration did not have yet and that have their
    default."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key in then:
            nested = isinstance(value, Mapping) and isinstance(then[key], Mapping)
            kept[key] = _without_later(value, defaults.get(key, {}), then[key]) if nested else value
        elif key not in defaults or value != defaults[key]:
            kept[key] = value
    return kept
