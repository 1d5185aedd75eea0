"""``llmctl prune``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import options
from llmctl.cli.guard import guarded
from llmctl.cli.options import flag

EXAMPLE = "Example: llmctl prune --dry-run"


@guarded
def command(
    kept: bool = flag(
        "Checkpoints that --keep-checkpoints keeps, too: such runs can then be extended from their "
        "weights only.",
        "--kept",
    ),
    workspace: Path = options.WORKSPACE,
    dry_run: bool = flag("Say what would go only.", "--dry-run"),
    json: bool = options.JSON,
) -> None:
    """Free what nothing needs: checkpoints of finished runs, what crashed writers left, locks of
    what is gone. What a command could go on from stays."""
    from llmctl.cli.console import out, print_json
    from llmctl.reporting.units import size
    from llmctl.stages.prune import find, free

    place = options.open_workspace(workspace)
    leftovers = find(place, kept=kept)
    if not dry_run:
        free(place, leftovers)
    total = sum(waste.bytes for waste in leftovers)
    if json:
        freed = [waste.document() for waste in leftovers]
        print_json({"dry_run": dry_run, "freed": freed, "bytes": total})
        return
    for waste in leftovers:
        if waste.what != "lock":
            out().print(f"{waste.what}: {waste.path}, {size(waste.bytes)}")
    locks = sum(waste.what == "lock" for waste in leftovers)
    if locks:
        out().print(f"locks of what is gone: {locks}")
    out().print(f"{'would free' if dry_run else 'freed'} {size(total)}")
