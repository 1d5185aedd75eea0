"""Rename an artefact, and every reference to it.

What was made from it names it in its inputs, its command and, for a tokenizer that was given by
name, its identity: those are written anew, so that tracing back, going on and being up to date work
as before. The references come first, then the artefact's own manifest, then its folder: killed in
between, the same command does the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from llmctl.errors import UsageError
from llmctl.stages.remove import Target, made_from, target_of
from llmctl.training.extension import BEFORE
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.locks import writer_lock
from llmctl.workspace.manifests import (
    Kind,
    Manifest,
    fingerprint,
    read_manifest,
    write_manifest,
)
from llmctl.workspace.names import RULE, is_name

NAMED_BY: dict[Kind, tuple[str, ...]] = {
    "tokenizer": ("--tokenizer",),
    "shards": ("--shards", "--data"),
    "run": ("--from", "--like", "--compare", "--draft"),
    "report": (),
}
"""Options whose value names an artefact of a kind."""


def plan(workspace: Workspace, old: str, new: str) -> tuple[Target, list[str]]:
    """What would be renamed, and what names it. Raises UsageError where the name can't be."""
    target = target_of(workspace, old)
    new = new.removeprefix(f"{target.kind}/")
    if not is_name(new):
        raise UsageError(f"{new!r} can't be a name: {RULE}")
    if new in [path.name for path in target.folder.parent.iterdir()]:
        raise UsageError(
            f"{target.kind} {new} is there already; choose another name, or remove it first: "
            f"llmctl rm {target.kind}/{new}"
        )
    read_manifest(target.folder)
    return target, [artefact.manifest.reference for artefact in made_from(workspace, target)]


def rename(workspace: Workspace, target: Target, new: str) -> None:
    """Do what was planned. Raises BusyError where one of them is being written."""
    from llmctl.tasks.model_card import write_card

    new = new.removeprefix(f"{target.kind}/")
    with contextlib.ExitStack() as locks:
        users = made_from(workspace, target)
        for folder in (target.folder, target.folder.with_name(new), *(u.folder for u in users)):
            locks.enter_context(writer_lock(folder))
        for user in users:
            # As it is now that nobody writes it.
            write_manifest(user.folder, _referring(read_manifest(user.folder), target, new))
        manifest = read_manifest(target.folder)
        before = target.folder / BEFORE
        if before.exists():
            earlier = _renamed(read_manifest(target.folder, BEFORE), target, new)
            write_json(before, earlier.model_dump(mode="json"))
        write_manifest(target.folder, _renamed(manifest, target, new))
        target.folder.rename(target.folder.with_name(new))
    if target.kind == "run":
        write_card(workspace, workspace.get("run", new))


def _renamed(manifest: Manifest, target: Target, new: str) -> Manifest:
    command = _replaced(manifest.command, ("--name",), target.name, new)
    return manifest.model_copy(update={"name": new, "command": command})


def _referring(manifest: Manifest, target: Target, new: str) -> Manifest:
    """A manifest whose inputs have the new name."""
    inputs = [
        record.model_copy(update={"name": f"{target.kind}/{new}"})
        if record.artefact == (target.kind, target.name)
        else record
        for record in manifest.inputs
    ]
    changes: dict[str, Any] = {
        "inputs": inputs,
        "command": _replaced(manifest.command, NAMED_BY[target.kind], target.name, new),
    }
    if target.kind == "run" and manifest.config.get("from") == target.name:
        changes["config"] = {**manifest.config, "from": new}
    identity = manifest.identity
    if target.kind == "tokenizer" and identity and identity.get("tokenizer") == target.name:
        # Given by name, it is part of what was asked for; learned, it is not.
        stage = manifest.stage
        if fingerprint(stage, identity, manifest.inputs) == manifest.fingerprint:
            identity = {**identity, "tokenizer": new}
            changes["config"] = {**manifest.config, "tokenizer": new}
            changes["identity"] = identity
            changes["fingerprint"] = fingerprint(stage, identity, inputs)
    return manifest.model_copy(update=changes)


def _replaced(words: Sequence[str], options: Sequence[str], old: str, new: str) -> list[str]:
    """A command with another value where one of some options has the old name."""
    replaced = list(words)
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if equals and option in options and value == old:
            replaced[place] = f"{option}={new}"
        elif word == old and place and words[place - 1] in options:
            replaced[place] = new
    return replaced
