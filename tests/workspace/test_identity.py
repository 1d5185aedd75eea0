"""Identity: what was asked for, whatever fields and defaults came since."""

from __future__ import annotations

from typing import Any

import pytest

from llmctl.config import NOT_IDENTITY, Config
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import InputRecord, Manifest, fingerprint, new_manifest


class Inner(Config):
    rate: float = 0.0
    steps: int | None = None


class Today(Config):
    width: int
    inner: Inner = Inner(rate=0.5)
    names: tuple[str, ...] = ("a",)


class InnerLater(Config):
    rate: float = 0.0
    steps: int | None = None
    momentum: float = 0.9
    """A field that came since."""


class Later(Config):
    width: int
    inner: InnerLater = InnerLater(rate=0.5)
    names: tuple[str, ...] = ("a",)
    window: int = 0


class OtherDefaults(Config):
    width: int
    inner: Inner = Inner(rate=0.7)
    names: tuple[str, ...] = ("a",)


DATA = InputRecord(role="data", name="/a.csv", digest="1" * 64)


def asked(config: Config, *inputs: InputRecord, **more: Any) -> Identity:
    return Identity.of("finetune", config, inputs or [DATA], **more)


def made(config: Config, *inputs: InputRecord, **more: Any) -> Manifest:
    """A manifest as it is read back."""
    manifest = new_manifest(
        "run",
        "r",
        stage="finetune",
        config=config.model_dump(mode="json"),
        identity=asked(config, *inputs, **more),
        seed=0,
    )
    return Manifest.model_validate_json(manifest.model_dump_json())


def made_in_format_1(config: Config, **more: Any) -> Manifest:
    """As llmctl 0.1.0 wrote it: a fingerprint of every field."""
    identity = {**config.identity(), **more}
    changes = {
        "fingerprint": fingerprint("finetune", identity, [DATA]),
        "identity": None,
        "defaults": {},
        "format_version": 1,
    }
    return made(config, **more).model_copy(update=changes)


def test_what_differs_from_the_defaults_is_the_identity():
    identity = asked(Today(width=3, inner=Inner(rate=0.5, steps=7)), scratch=False)
    assert identity.given == {"width": 3, "inner.steps": 7, "scratch": False}
    assert identity.left == {"inner.rate": 0.5, "names": ["a"]}
    assert asked(Today(width=3)).fingerprint != asked(Today(width=4)).fingerprint
    assert asked(Today(width=3)).fingerprint == asked(Later(width=3)).fingerprint


@pytest.mark.parametrize("write", [made, made_in_format_1])
def test_a_field_that_came_later_leaves_what_was_made_up_to_date(write: Any):
    manifest = write(Today(width=3, inner=Inner(steps=7)), scratch=True)
    assert asked(Later(width=3, inner=InnerLater(steps=7)), scratch=True).made(manifest)
    for other in (
        Later(width=3, inner=InnerLater(steps=7), window=1),
        Later(width=3, inner=InnerLater(steps=7, momentum=0.5)),
        Later(width=3, inner=InnerLater(steps=8)),
        Later(width=3),
    ):
        assert not asked(other, scratch=True).made(manifest)
    assert not asked(Later(width=3, inner=InnerLater(steps=7)), scratch=False).made(manifest)


@pytest.mark.parametrize("write", [made, made_in_format_1])
def test_a_default_that_changed_since_is_seen(write: Any):
    manifest = write(Today(width=3))
    now = asked(OtherDefaults(width=3))
    assert now.given == {"width": 3}
    assert not now.made(manifest)
    assert [str(d) for d in now.differences(manifest)] == ["inner.rate 0.5, now 0.7"]
    # The old default, given, is what was made then.
    assert asked(OtherDefaults(width=3, inner=Inner(rate=0.5))).made(manifest)


def test_a_field_that_is_gone_had_to_have_its_default():
    assert asked(Today(width=3)).made(made(Later(width=3)))
    other = made(Later(width=3, window=5))
    assert not asked(Today(width=3)).made(other)
    assert [str(d) for d in asked(Today(width=3)).differences(other)] == ["window 5, now unset"]


def test_other_inputs_are_told_by_role():
    other = InputRecord(role="data", name="/b.csv", digest="2" * 64)
    changed = InputRecord(role="data", name="/a.csv", digest="2" * 64)
    target = InputRecord(role="target", name="/t", digest="3" * 64)
    manifest, config = made(Today(width=3)), Today(width=3)
    for inputs, told in {
        (other,): "data /a.csv, now /b.csv",
        (changed,): f"data /a.csv ({'1' * 12}), now /a.csv ({'2' * 12})",
        (DATA, target): "target none, now /t",
    }.items():
        assert not asked(config, *inputs).made(manifest)
        assert [str(d) for d in asked(config, *inputs).differences(manifest)] == [told]


def test_a_damaged_record_is_not_believed():
    manifest = made(Today(width=3))
    forged = manifest.model_copy(update={"identity": {"width": 4}})
    assert not asked(Today(width=4)).made(forged)


def test_values_can_be_asked_for_otherwise():
    identity = asked(Today(width=3)).changed({"inner.steps": 9, "width": 5})
    assert identity.given == {"width": 5, "inner.steps": 9}
    assert identity.made(made(Today(width=5, inner=Inner(rate=0.5, steps=9))))


def test_what_decides_nothing_is_no_part_of_it():
    from pydantic import Field

    class Counted(Config):
        width: int = 1
        workers: int = Field(0, json_schema_extra=NOT_IDENTITY)

    assert asked(Counted(workers=4)).given == {}
    assert asked(Counted(workers=4)).left == {"width": 1}
