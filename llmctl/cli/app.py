"""The command line: one subcommand for each stage.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from llmctl import __version__
from llmctl.cli import (
    chat,
    compress,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    finetune,
    generate,
    import_model,
    plan,
    predict,
    pretrain,
    prune,
    rename,
    rm,
    search,
    serve,
    status,
    sweep,
    tokenize,
)

app = typer.Typer(
    name="llmctl",
    help="Pretrain, finetune and use language models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: llmctl tokenize corpus/*.txt && llmctl pretrain --arch bert && llmctl status",
)

COMMANDS = {
    "tokenize": tokenize,
    "plan": plan,
    "pretrain": pretrain,
    "finetune": finetune,
    "sweep": sweep,
    "predict": predict,
    "generate": generate,
    "embed": embed,
    "search": search,
    "eval": evaluate,
    "explain": explain,
    "chat": chat,
    "serve": serve,
    "compress": compress,
    "import": import_model,
    "export": export,
    "status": status,
    "doctor": doctor,
    "rm": rm,
    "rename": rename,
    "prune": prune,
}

for _name, _module in COMMANDS.items():
    _class = getattr(_module, "Command", None)
    app.command(_name, cls=_class, epilog=_module.EXAMPLE)(_module.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmctl {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    if debug:
        os.environ["LLMCTL_DEBUG"] = "1"
