"""``llmctl import``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, option

EXAMPLE = "Example: llmctl import sentence-transformers/all-MiniLM-L6-v2 --name minilm"


@guarded
def command(
    source: str = argument(
        "A model's folder or file, or on the Hugging Face Hub OWNER/NAME or OWNER/NAME/FILE.gguf.",
        default=...,
        metavar="SOURCE",
    ),
    name: str | None = options.NAME,
    revision: str | None = option(
        "Branch, tag or commit on the Hub.", show_default="the newest of its main branch"
    ),
    tokenizer: str | None = option(
        "The tokenizer of a nanoGPT's checkpoint: a meta.pkl, a folder, a tokenizer.json, GPT-2's "
        "vocab.json, or a name in the workspace.",
        autocompletion=artefact_names.TOKENIZERS,
        show_default="the one beside it",
    ),
    workspace: Path = options.WORKSPACE,
    force: bool = options.FORCE,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Take a model from elsewhere into the workspace, as a run that every command takes by its
    name. HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are honoured."""
    from llmctl.cli.console import TerminalReporter, print_json
    from llmctl.cli.console import out as terminal
    from llmctl.reporting.units import count
    from llmctl.stages.import_model import import_model

    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        run, up_to_date = import_model(
            place,
            source,
            name=name,
            revision=revision,
            tokenizer=tokenizer,
            force=force,
            reporter=reporter,
        )
    summary = run.manifest.summary
    if json:
        print_json({"name": run.manifest.name, "up_to_date": up_to_date, **summary})
        return
    state = ": up to date" if up_to_date else ""
    terminal().print(
        f"{run.manifest.name}{state}: {summary['described']} of the architecture "
        f"{summary['arch']}, {count(summary['parameters'])} parameters"
    )
