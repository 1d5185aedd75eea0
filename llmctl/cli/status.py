"""``llmctl status``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli import options
from llmctl.cli.options import guarded

if TYPE_CHECKING:
    from rich.console import RenderableType

EXAMPLE = "Example: llmctl status --watch, or llmctl status bert-docs"

REFRESH_SECONDS = 2.0


@guarded
def command(
    name: Annotated[
        str | None, typer.Argument(help="An artefact to show in full.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    workspace: options.WorkspaceOption = Path("workspace"),
    json: options.JsonOption = False,
) -> None:
    """Show what the workspace holds and how far its runs are."""
    from llmctl.cli.console import out, print_json
    from llmctl.errors import UsageError
    from llmctl.reporting.status import render_detail, render_overview
    from llmctl.stages.status import detail, overview

    if watch and json:
        raise UsageError("--watch draws a table; leave out --json, or call it again and again")
    place = options.open_workspace(workspace)
    if not place.root.exists():
        raise UsageError(
            f"there is no workspace at {place.root}; make shards with `llmctl tokenize`, or give "
            "--workspace"
        )
    console = out()

    def picture() -> RenderableType:
        if name:
            return render_detail(detail(place, name))
        return render_overview(overview(place), console.width)

    if json:
        print_json(detail(place, name) if name else overview(place))
        return
    if not watch:
        console.print(picture())
        return
    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(picture(), refresh=True)
            time.sleep(REFRESH_SECONDS)
