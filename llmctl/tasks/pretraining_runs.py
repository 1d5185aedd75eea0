"""Runs of pretraining: how they are named and known again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.config import Config
from llmctl.reporting.reporter import Reporter
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.identity import Identity


def find_pretraining(
    workspace: Workspace,
    config: Any,
    shards: Artefact,
    name: str | None,
    *,
    force: bool = False,
    reporter: Reporter,
) -> tuple[str, Artefact | None]:
    """The name of a pretraining's run, and the run where it is begun or done already.

    config: of any architecture, the n-grams' too, as it was given: the vocabulary's size follows
    from the shards. Raises NameTaken if something else has the name, unless ``force``.
    """
    return workspace.match(
        "run",
        name,
        default_name(config, shards),
        pretraining_identity(config, shards),
        force=force,
        note=reporter.note,
    )


def default_name(config: Any, shards: Artefact) -> str:
    """The name of a pretraining's run where none is given."""
    return f"{config.arch}-{shards.manifest.name}"


def pretraining_identity(config: Config, shards: Artefact) -> Identity:
    """What a pretraining is asked for, by its configuration as it was given."""
    return Identity.of("pretrain", config, [shards.as_input("shards")])


def newest_pretrained(runs: Sequence[Artefact]) -> Artefact | None:
    """The newest finished pretraining of a network among some runs, oldest first."""
    done = [
        run
        for run in runs
        if run.finished
        and run.manifest.stage == "pretrain"
        and run.manifest.config.get("arch") != "ngram"
    ]
    return done[-1] if done else None
