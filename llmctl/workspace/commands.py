"""Commands as manifests keep them, and how to go on with what one began."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmctl.workspace.manifests import InputRecord, Manifest


def command_line() -> list[str]:
    """The command being run, with the workspace that the environment names written out, and with
    torchrun before it where that started it."""
    words = ["llmctl", *sys.argv[1:]]
    size, local_size = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if size != "1" and not any(word.partition("=")[0] == "--nproc" for word in words):
        nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
        where = [] if nodes == "1" else ["--nnodes", nodes, "--rdzv-endpoint", "HOST:PORT"]
        words[:0] = ["torchrun", *where, "--nproc-per-node", local_size, "-m"]
    has_workspace = any(
        word in ("-w", "--workspace") or word.startswith("--workspace=") for word in words
    )
    if "LLMCTL_WORKSPACE" in os.environ and not has_workspace:
        words += ["--workspace", os.environ["LLMCTL_WORKSPACE"]]
    return words


def resume_command(manifest: Manifest) -> str:
    """The command that goes on with a run, from any folder.

    What the command left to be chosen (newest shards, a name) is written out, as the choice
    could be another by now. Without --force, which would start the run anew.
    """
    words = [word for word in manifest.command if word != "--force"]
    chosen = {"--name": manifest.name}
    of_role = {record.role: record for record in manifest.inputs}
    if manifest.stage == "pretrain" and "shards" in of_role:
        chosen["--shards"] = _given_as(of_role["shards"])
    if manifest.config.get("from") == "scratch" and "model" in of_role:
        chosen["--like"] = _given_as(of_role["model"])
    for option, value in chosen.items():
        if not any(word == option or word.startswith(f"{option}=") for word in words):
            words += [option, value]
    command = shlex.join(words)
    if manifest.directory and Path(manifest.directory) != Path.cwd():
        return f"cd {shlex.quote(manifest.directory)} && {command}"
    return command


def _given_as(record: InputRecord) -> str:
    """What an option takes for an input: an artefact's name, or a path."""
    return record.artefact[1] if record.artefact else record.name
