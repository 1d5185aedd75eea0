"""``llmctl finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import options
from llmctl.cli.options import guarded

EXAMPLE = "Example: llmctl finetune --from bert-docs --task classify --data reviews.csv"


@guarded
def command(
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="A pretrained run, a model folder, or scratch: the same network with random "
            "weights.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Labelled texts: CSV, TSV, JSONL or Parquet.")],
    task: Annotated[
        str | None, typer.Option(help="What to learn: classify.", show_default="classify")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="With --from scratch: the run whose network it is.",
            show_default="the newest pretrained run",
        ),
    ] = None,
    text_column: options.TextColumnOption = None,
    text_pair_column: options.TextPairColumnOption = None,
    label_column: options.LabelColumnOption = None,
    encoding_errors: options.EncodingErrorsOption = None,
    freeze_layers: Annotated[
        int | None,
        typer.Option(help="Keep the embeddings and this many of the lowest blocks as they are."),
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="none, or balanced: rare classes weigh more.")
    ] = None,
    seed: options.SeedOption = None,
    name: options.NameOption = None,
    workspace: options.WorkspaceOption = Path("workspace"),
    recipe: options.RecipeOption = None,
    set_: options.SetOption = [],  # noqa: B006
    force: options.ForceOption = False,
    dry_run: options.DryRunOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a pretrained model on labelled texts. The same command goes on after a stop."""
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.config import build, parse_assignments, read_recipe
    from llmctl.stages.finetune import FinetuneConfig, finetune, plan

    table = {
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
        "encoding_errors": encoding_errors,
    }
    given: dict[str, Any] = {
        "task": task,
        "data": {key: value for key, value in table.items() if value is not None},
        "freeze_layers": freeze_layers,
        "class_weights": class_weights,
        "seed": seed,
    }
    config = build(
        FinetuneConfig,
        {"training": FinetuneConfig().training.model_dump()},
        read_recipe(recipe, "finetune") if recipe else {},
        {key: value for key, value in given.items() if value is not None},
        parse_assignments(set_),
    )
    place = options.open_workspace(workspace)
    how: dict[str, Any] = {"like": like, "name": name, "force": force}
    with TerminalReporter(quiet=quiet) as reporter:
        if dry_run:
            print_json(plan(place, start, data, config, reporter=reporter, **how))
            return
        artefact, there = finetune(place, start, data, config, reporter=reporter, **how)
        if there:
            reporter.note(f"run {artefact.manifest.name}: up to date")
    summary = artefact.manifest.summary
    if json:
        print_json({"name": artefact.manifest.name, "folder": str(artefact.folder), **summary})
        return
    last = summary.get("validation", {})
    figures = f", best at step {summary['best_step']}" if last and summary["best_step"] else ""
    out().print(
        f"run {artefact.manifest.name}: {summary['train_examples']:,} examples, "
        f"{summary['steps']:,} steps in {summary['seconds']:.0f} s{figures}; "
        f"model in {artefact.folder / 'model'}"
    )
