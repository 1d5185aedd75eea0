"""``llmctl search``."""

from __future__ import annotations

import sys
from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, flag, option
from llmctl.errors import UsageError

EXAMPLE = 'Example: llmctl search notes.arrow "how do I get my money back"'
SHOWN_CHARACTERS = 120
"""Characters of a text that a line shows."""


@guarded
def command(
    index: Path = argument("A file that llmctl embed wrote.", default=...),
    queries: list[str] | None = argument("Queries; with none, standard input is read, one a line."),
    start: str | None = option(
        "The model, where it has moved; it must be the one that made the vectors.",
        "--from",
        autocompletion=artefact_names.RUNS,
        show_default="as the file says",
    ),
    top: int = option("Texts shown for each query.", default=5, min=1),
    device: str | None = options.DEVICE,
    threads: int | None = options.THREADS,
    workspace: Path = options.WORKSPACE,
    json: bool = flag("Print one JSON object a line.", "--json"),
) -> None:
    """Find the texts that are nearest to a query in meaning; every one is compared."""
    options.load_pytorch()
    from llmctl.cli.console import print_json
    from llmctl.reporting.visible import visible
    from llmctl.stages.search import search

    if not queries:
        if sys.stdin.isatty():
            raise UsageError(f'give a query: llmctl search {index} "a query"')
        queries = [line.strip() for line in sys.stdin if line.strip()]
    if not queries:
        raise UsageError("there was no query; give one, or one a line on standard input")
    place = options.open_workspace(workspace)
    for found in search(place, index, queries, start=start, top=top, device=device or "auto"):
        if json:
            print_json(found.record())
            continue
        if len(queries) > 1:
            sys.stdout.write(f"{visible(found.query)}\n")
        for hit in found.hits:
            shown = " ".join(hit.get("text", "").split())
            shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[: SHOWN_CHARACTERS - 1]}…"
            sys.stdout.write(f"{hit['score']:.4f}\t{hit['row']}\t{visible(shown)}\n")
    sys.stdout.flush()
