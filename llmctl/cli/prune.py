"""``llmctl prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli import options
from llmctl.cli.options import guarded

EXAMPLE = "Example: llmctl prune --dry-run"


@guarded
def command(
    kept: Annotated[
        bool,
        typer.Option(
            "--kept",
            help="Checkpoints that --keep-checkpoints keeps, too: such runs can then be extended "
            "from their weights only.",
        ),
    ] = False,
    workspace: options.WorkspaceOption = Path("workspace"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go only.")] = False,
    json: options.JsonOption = False,
) -> None:
    """Free what nothing needs: checkpoints of finished runs, what crashed writers left, locks of
    what is gone. What a command could go on from stays."""
    from llmctl.cli.console import out, print_json
    from llmctl.reporting.units import size
    from llmctl.stages.prune import find, free

    place = options.open_workspace(workspace)
    found = find(place, kept=kept)
    if not dry_run:
        free(place, found)
    total = sum(waste.bytes for waste in found)
    if json:
        freed = [waste.document() for waste in found]
        print_json({"dry_run": dry_run, "freed": freed, "bytes": total})
        return
    for waste in found:
        if waste.what != "lock":
            out().print(f"{waste.what}: {waste.path}, {size(waste.bytes)}")
    locks = sum(waste.what == "lock" for waste in found)
    if locks:
        out().print(f"locks of what is gone: {locks}")
    out().print(f"{'would free' if dry_run else 'freed'} {size(total)}")
