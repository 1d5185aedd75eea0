"""``llmctl status``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, flag, option
from llmctl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

EXAMPLE = (
    "Example: llmctl status --watch, or llmctl status bert-docs, or llmctl status --compare "
    "run-1 run-2"
)

REFRESH_SECONDS = 2.0


@guarded
def command(
    names: list[str] | None = argument(
        "An artefact to show in full; with --compare, further runs.",
        metavar="[NAME]…",
        autocompletion=artefact_names.ANYTHING,
        show_default=False,
    ),
    compare: list[str] = option(
        "Show runs together: what their configurations differ in, their figures, and their curves "
        "on common axes.",
        "--compare",
        default=[],
        metavar="RUN RUN…",
        autocompletion=artefact_names.RUNS,
    ),
    plot: bool = flag("With --compare, of what llmctl compress made: quality over size.", "--plot"),
    watch: bool = flag("Refresh until Ctrl-C.", "--watch"),
    workspace: Path = options.WORKSPACE,
    json: bool = options.JSON,
) -> None:
    """Show what the workspace holds and how far its runs are, or runs beside one another."""
    from llmctl.cli.console import out, print_json
    from llmctl.reporting.compare import render_compare
    from llmctl.reporting.compression import render_sizes
    from llmctl.reporting.status import render_detail, render_newest, render_overview
    from llmctl.stages.compare import compare as compared
    from llmctl.stages.status import detail, overview

    if plot:
        from llmctl.stages.compress.sizes import sizes

    names = names or []
    if plot and (watch or not compare):
        raise UsageError("--plot goes with --compare RUN RUN…, and not with --watch")
    if watch and json:
        raise UsageError("--watch draws a table; leave out --json, or call it again and again")
    if len(names) > 1 and not compare:
        raise UsageError(
            "status shows one artefact in full; to see several runs together: llmctl status "
            f"--compare {' '.join(names)}"
        )
    place = options.open_workspace(workspace)
    if not place.root.exists():
        raise UsageError(
            f"there is no workspace at {place.root}; make shards with `llmctl tokenize`, or give "
            "--workspace"
        )
    console = out()

    def document() -> dict[str, Any]:
        if plot:
            return sizes(place, [*compare, *names])
        if compare:
            # An option takes one word: those behind it are arguments.
            return compared(place, [*compare, *names])
        return detail(place, names[0]) if names else overview(place)

    def picture() -> RenderableType:
        if plot:
            return render_sizes(document(), console.width)
        if compare:
            return render_compare(document(), console.width)
        if names:
            return render_detail(document())
        if watch:
            return render_newest(document(), console.width, console.height)
        return render_overview(document(), console.width)

    if json:
        print_json(document())
        return
    if not watch:
        console.print(picture())
        return
    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(picture(), refresh=True)
            time.sleep(REFRESH_SECONDS)
