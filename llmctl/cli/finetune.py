"""``llmctl finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import artefact_names, options
from llmctl.cli.launch import run_together
from llmctl.cli.options import guarded
from llmctl.cli.threads import note_others

EXAMPLE = "Example: llmctl finetune --from bert-docs --task classify --data reviews.csv"


@guarded
def command(
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            autocompletion=artefact_names.RUNS,
            help="A pretrained run, a model folder, or scratch: the same network with random "
            "weights.",
            show_default="the recipe's from",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="What to learn from: labelled texts (CSV, TSV, JSONL, Parquet); instructions and "
            "conversations in Alpaca's, messages' or ShareGPT's layout (JSON, JSONL, Parquet); or "
            "pairs of source and target (a table, or plain text with --target).",
            show_default="the recipe's data",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What to learn: classify; instruct, to answer in a chat; or seq2seq, to translate "
            "or summarise.",
            show_default="classify",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="What trains: full, lora (a small addition, kept in the run's folder adapter too) "
            "or last-layers.",
            show_default="full",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            autocompletion=artefact_names.RUNS,
            help="With --from scratch: the run whose network it is.",
            show_default="the newest pretrained run",
        ),
    ] = None,
    text_column: options.TextColumnOption = None,
    text_pair_column: options.TextPairColumnOption = None,
    label_column: options.LabelColumnOption = None,
    target: Annotated[
        Path | None,
        typer.Option(help="With plain text as --data: the targets, line by line."),
    ] = None,
    source_column: options.SourceColumnOption = None,
    target_column: options.TargetColumnOption = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="With --task seq2seq: decoder, a Transformer decoder attached to the GPT, or "
            "prefix, both texts in one sequence.",
            show_default="decoder",
        ),
    ] = None,
    encoding: options.EncodingOption = None,
    encoding_errors: options.EncodingErrorsOption = None,
    header: options.HeaderOption = None,
    freeze_encoder: Annotated[
        bool,
        typer.Option("--freeze-encoder", help="With --task seq2seq: keep the GPT as it is."),
    ] = False,
    freeze_layers: Annotated[
        int | None,
        typer.Option(help="Keep the embeddings and this many of the lowest blocks as they are."),
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(help="How classes weigh: none, all alike, or balanced, rare ones more."),
    ] = None,
    keep_checkpoints: options.KeepCheckpointsOption = None,
    seed: options.SeedOption = None,
    name: options.NameOption = None,
    workspace: options.WorkspaceOption = Path("workspace"),
    recipe: options.RecipeOption = None,
    set_: options.SetOption = [],  # noqa: B006
    force: options.ForceOption = False,
    dry_run: options.DryRunOption = False,
    profile: options.ProfileOption = False,
    threads: options.ThreadsOption = None,
    nproc: options.NprocOption = None,
    max_restarts: options.MaxRestartsOption = 0,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a pretrained model on labelled texts, on instructions to answer in a chat, or on pairs
    to translate or summarise. The same command goes on after a stop."""
    if not dry_run:
        run_together(nproc, max_restarts)
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.config import parse_assignments, read_recipe, take
    from llmctl.errors import UsageError
    from llmctl.reporting.units import figure
    from llmctl.stages.finetune import finetune, plan, resolve

    named, file = take(
        read_recipe(recipe, "finetune") if recipe else {}, "from", "like", "data.file", "task"
    )
    task = task or named.get("task")
    like = like or (None if start else named.get("like"))
    start = options.needed("--from", start or named.get("from"))
    data = options.needed("--data", data or options.path(named.get("data.file")))
    # By the task that they go with: those of its data, and the others.
    data_options: dict[str, dict[str, Any]] = {
        "classify": {
            "text_column": text_column,
            "text_pair_column": text_pair_column,
            "label_column": label_column,
        },
        "seq2seq": {
            "target": target,
            "source_column": source_column,
            "target_column": target_column,
        },
    }
    other_options: dict[str, dict[str, Any]] = {
        "classify": {"class_weights": class_weights},
        "seq2seq": {"style": style, "freeze_encoder": freeze_encoder or None},
    }
    for owner in data_options:
        for key, value in {**data_options[owner], **other_options[owner]}.items():
            if value is not None and owner != (task or "classify"):
                option = key.replace("_", "-")
                raise UsageError(f"--{option} goes with --task {owner}; leave it out")
    table = {
        "encoding": encoding,
        "encoding_errors": encoding_errors,
        "header": header,
        **data_options["classify"],
        **data_options["seq2seq"],
    }
    given: dict[str, Any] = {
        "method": method,
        "data": {key: value for key, value in table.items() if value is not None},
        "freeze_layers": freeze_layers,
        **other_options["classify"],
        **other_options["seq2seq"],
        "seed": seed,
    }
    config = resolve(
        task,
        file,
        {key: value for key, value in given.items() if value is not None},
        options.checkpoints(keep_checkpoints),
        parse_assignments(set_),
    )
    place = options.open_workspace(workspace)
    how: dict[str, Any] = {"like": like, "name": name, "force": force}
    with TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter)
        if dry_run:
            print_dry_run(
                plan(place, start, data, config, reporter=reporter, **how), config, json=json
            )
            return
        artefact, there = finetune(
            place, start, data, config, profile=profile, reporter=reporter, **how
        )
        if there:
            reporter.note(f"run {artefact.manifest.name}: up to date")
    summary = artefact.manifest.summary
    if json:
        print_json({"name": artefact.manifest.name, "folder": str(artefact.folder), **summary})
        return
    last = summary.get("validation", {})
    figures = f", validation loss {figure(last.get('loss'), '.4f')}" if last else ""
    if "accuracy" in last:
        figures += f" and accuracy {last['accuracy']:.1%}"
    if summary["best_step"]:
        # Another step may have had a lower loss.
        judged = "accuracy" if "accuracy" in last else "loss"
        figures += f" at step {summary['best_step']}, the best by {judged}"
    out().print(
        f"run {artefact.manifest.name}: {summary['train_examples']:,} examples, "
        f"{summary['steps']:,} steps in {summary['seconds']:.0f} s{figures}; "
        f"model in {artefact.folder / 'model'}"
    )
