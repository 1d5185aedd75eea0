"""``llmctl rename``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli import artefact_names, options
from llmctl.cli.options import guarded

EXAMPLE = "Example: llmctl rename bert-docs baseline"


@guarded
def command(
    old: Annotated[
        str,
        typer.Argument(
            help="A name, or KIND/NAME (run, report, shards, tokenizer) where several have it.",
            metavar="OLD",
            autocompletion=artefact_names.ANYTHING,
        ),
    ],
    new: Annotated[str, typer.Argument(help="The new name.", metavar="NEW")],
    workspace: options.WorkspaceOption = Path("workspace"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be renamed, and what refers to it.")
    ] = False,
    json: options.JsonOption = False,
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
