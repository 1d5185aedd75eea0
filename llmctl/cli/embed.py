"""``llmctl embed``."""

from __future__ import annotations

import sys
from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, flag, option
from llmctl.errors import UsageError

EXAMPLE = "Example: llmctl embed --from pairs-bert-mine --data notes.csv --out notes.arrow"


@guarded
def command(
    start: str = option(
        "A run of finetune --task embed, or a folder of sentence-transformers.",
        "--from",
        default=...,
        autocompletion=artefact_names.RUNS,
    ),
    texts: list[str] | None = argument("Texts; their vectors are printed, a JSON object a line."),
    data: Path | None = option("A file of texts (a line each, or a table), - for standard input."),
    out: Path | None = option(
        "The file to write: .arrow, texts with their vectors, or .npy, vectors alone (float32)."
    ),
    text_column: str | None = options.TEXT_COLUMN,
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    width: int | None = option(
        "Keep this many of the first coordinates: of a model trained with matryoshka they do "
        "nearly as well.",
        min=1,
        show_default="all",
    ),
    device: str | None = options.DEVICE,
    threads: int | None = options.THREADS,
    workspace: Path = options.WORKSPACE,
    force: bool = options.FORCE,
    json: bool = flag("Print what was written as one JSON document.", "--json"),
    quiet: bool = options.QUIET,
) -> None:
    """Make vectors of texts, to search or compare them by meaning."""
    asked = locals()
    options.load_pytorch()
    from llmctl.cli.console import TerminalReporter, print_json
    from llmctl.cli.console import out as terminal
    from llmctl.data.tables.labelled_files import LabelledColumns
    from llmctl.stages.embed import texts_of, write_vectors
    from llmctl.tasks.embed.texts import open_embedder, single

    if texts and (data is not None or out is not None):
        raise UsageError("give texts, whose vectors are printed, or --data FILE; not both")
    if not texts and data is None:
        raise UsageError('give texts or --data FILE: llmctl embed --from RUN "a text"')
    columns = options.configured(LabelledColumns, "embed", asked)
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        embedder = open_embedder(place, start, width=width, device=device or "auto")
        if out is None:
            source = single(texts) if texts else texts_of(data or Path("-"), columns, reporter)
            for block, vectors in embedder.blocks(source):
                for text, vector in zip(block, vectors.tolist(), strict=True):
                    print_json({"text": text.text, "vector": vector})
            sys.stdout.flush()
            return
        assert data is not None
        made, count, up_to_date = write_vectors(
            embedder, data, out, columns, force=force, reporter=reporter
        )
    if json:
        print_json({"out": str(out), "texts": count, "width": made.width, "model": made.model})
        return
    state = ": up to date" if up_to_date else ""
    terminal().print(f"{out}{state}: {count:,} vectors of {made.width} numbers by {made.model}")
