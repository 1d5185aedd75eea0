"""``llmctl rm``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, flag
from llmctl.errors import UsageError

EXAMPLE = "Example: llmctl rm old-run report/old-run-test --dry-run"


@guarded
def command(
    names: list[str] = argument(
        "What goes: a name, or KIND/NAME (run, report, shards, tokenizer) where several have it.",
        default=...,
        metavar="NAME…",
        autocompletion=artefact_names.ANYTHING,
    ),
    force: bool = flag("Remove it even if other artefacts were made from it.", "--force"),
    yes: bool = flag("Don't ask; only on a terminal is asked at all.", "--yes", "-y"),
    workspace: Path = options.WORKSPACE,
    dry_run: bool = flag("Say what would go only.", "--dry-run"),
    json: bool = options.JSON,
) -> None:
    """Remove runs, reports, shards or tokenizers; what others were made from only with --force."""
    from llmctl.cli.console import out, print_json
    from llmctl.reporting.units import size
    from llmctl.stages.remove import plan, remove

    place = options.open_workspace(workspace)
    targets = plan(place, names, force=force)
    entries = [target.document() for target in targets]
    total = sum(entry["bytes"] for entry in entries)
    if not dry_run:
        what = ", ".join(target.reference for target in targets)
        asked = not yes and sys.stdin.isatty() and sys.stderr.isatty()
        if asked and not typer.confirm(f"remove {what} ({size(total)})?", err=True):
            raise UsageError("nothing was removed")
        remove(place, targets)
    if json:
        print_json({"dry_run": dry_run, "removed": entries, "bytes": total})
        return
    for target, entry in zip(targets, entries, strict=True):
        verb = "would remove" if dry_run else "removed"
        out().print(f"{verb} {target.reference}, {size(entry['bytes'])}")
