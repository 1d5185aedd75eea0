"""``llmctl rename``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, flag

EXAMPLE = "Example: llmctl rename bert-docs baseline"


@guarded
def command(
    old: str = argument(
        "A name, or KIND/NAME (run, report, shards, tokenizer) where several have it.",
        default=...,
        metavar="OLD",
        autocompletion=artefact_names.ANYTHING,
    ),
    new: str = argument("The new name.", default=..., metavar="NEW"),
    workspace: Path = options.WORKSPACE,
    dry_run: bool = flag("Say what would be renamed, and what refers to it.", "--dry-run"),
    json: bool = options.JSON,
) -> None:
    """Rename an artefact, and every reference to it: what was made from it stays up to date."""
    from llmctl.cli.console import out, print_json
    from llmctl.stages.rename import plan, rename

    place = options.open_workspace(workspace)
    target, users = plan(place, old, new)
    new = new.removeprefix(f"{target.kind}/")
    if not dry_run:
        rename(place, target, new)
    if json:
        document = {"kind": target.kind, "old": target.name, "new": new, "references": users}
        print_json({"dry_run": dry_run, **document})
        return
    verb = "would rename" if dry_run else "renamed"
    references = f", and the references of {', '.join(users)}" if users else ""
    out().print(f"{verb} {target.reference} to {new}{references}")
