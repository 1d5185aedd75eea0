"""``llmctl tokenize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import options
from llmctl.cli.options import guarded

EXAMPLE = "Example: llmctl tokenize corpus/*.txt --tokenizer wordpiece --vocab-size 16000"


@guarded
def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files (.txt .md .jsonl .csv .parquet .arrow, .gz .zst), folders, globs, "
            "- for standard input, python:docs or python:code."
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="A kind to learn (wordpiece, bpe, unigram, sentencepiece-bpe, characters) or an "
            "existing one: a name in the workspace, a folder, a tokenizer.json, GPT-2's "
            "vocab.json, a .model, a .tiktoken, a vocab.txt.",
            show_default="wordpiece",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Pieces to learn.", show_default="by corpus size")
    ] = None,
    cased: Annotated[bool, typer.Option("--cased", help="Keep capitals and accents.")] = False,
    text_column: options.TextColumnOption = None,
    document: Annotated[
        str | None,
        typer.Option(help="What a document is in plain text: auto, file, paragraph, line."),
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share held out to validate on.", show_default="0.02")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="What is held out. hash: documents by their hash; tail: the corpus's last "
            "characters.",
            show_default="hash",
        ),
    ] = None,
    encoding_errors: Annotated[
        str | None,
        typer.Option(help="strict or replace: what a byte that is not UTF-8 does."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; 0: one a core.")] = None,
    name: options.NameOption = None,
    workspace: options.WorkspaceOption = Path("workspace"),
    recipe: options.RecipeOption = None,
    set_: options.SetOption = [],  # noqa: B006
    force: options.ForceOption = False,
    dry_run: options.DryRunOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Learn a tokenizer from text, or take one, and write the text as shards of tokens."""
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.config import build, parse_assignments, read_recipe
    from llmctl.stages.tokenize import TokenizeConfig, tokenize

    given: dict[str, Any] = {
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "cased": cased or None,
        "text_column": text_column,
        "document": document,
        "validation": validation,
        "split": split,
        "encoding_errors": encoding_errors,
        "workers": workers,
    }
    config = build(
        TokenizeConfig,
        read_recipe(recipe, "tokenize") if recipe else {},
        {key: value for key, value in given.items() if value is not None},
        parse_assignments(set_),
    )
    if dry_run:
        print_json({"config": config.model_dump(mode="json"), "sources": sources})
        return
    with TerminalReporter(quiet=quiet) as reporter:
        artefact, there = tokenize(
            options.open_workspace(workspace),
            sources,
            config,
            name=name,
            force=force,
            reporter=reporter,
        )
        if there:
            reporter.note(f"shards {artefact.manifest.name}: up to date")
    summary = artefact.manifest.summary
    if json:
        print_json({"name": artefact.manifest.name, "folder": str(artefact.folder), **summary})
        return
    duplicates = f", {summary['duplicates']:,} duplicates dropped" if summary["duplicates"] else ""
    out().print(
        f"shards {artefact.manifest.name}: {summary['documents']:,} documents"
        f" ({summary['validation_documents']:,} for validation{duplicates}), "
        f"{summary['tokens']:,} tokens, {summary['tokens_per_word']:.2f} tokens per word, "
        f"{summary['unknown_share']:.3%} unknown, {summary['megabytes_per_second']:.1f} MB/s"
    )
