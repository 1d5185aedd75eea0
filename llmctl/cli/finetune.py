"""``llmctl finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.launch import launch_processes
from llmctl.cli.options import flag, option
from llmctl.cli.threads import note_others
from llmctl.errors import UsageError

EXAMPLE = "Example: llmctl finetune --from bert-docs --task classify --data reviews.csv"


@guarded
def command(
    start: str | None = option(
        "A pretrained run, a model folder, or scratch: the same network with random weights.",
        "--from",
        autocompletion=artefact_names.RUNS,
        show_default="the recipe's from",
    ),
    data: Path | None = option(
        "What to learn from: labelled texts (CSV, TSV, JSONL, Parquet); instructions and "
        "conversations in Alpaca's, messages' or ShareGPT's layout (JSON, JSONL, Parquet); or "
        "pairs of source and target (a table, or plain text with --target).",
        show_default="the recipe's data",
    ),
    task: str | None = option(
        "What to learn: classify; instruct, to answer in a chat; or seq2seq, to translate or "
        "summarise.",
        show_default="classify",
    ),
    method: str | None = option(
        "What trains: full, lora (a small addition, kept in the run's folder adapter too) or "
        "last-layers.",
        show_default="full",
    ),
    like: str | None = option(
        "With --from scratch: the run whose network it is.",
        autocompletion=artefact_names.RUNS,
        show_default="the newest pretrained run",
    ),
    text_column: str | None = options.TEXT_COLUMN,
    text_pair_column: str | None = options.TEXT_PAIR_COLUMN,
    label_column: str | None = options.LABEL_COLUMN,
    target: Path | None = option("With plain text as --data: the targets, line by line."),
    source_column: str | None = options.SOURCE_COLUMN,
    target_column: str | None = options.TARGET_COLUMN,
    style: str | None = option(
        "With --task seq2seq: decoder, a Transformer decoder attached to the GPT, or prefix, both "
        "texts in one sequence.",
        show_default="decoder",
    ),
    encoding: str | None = options.ENCODING,
    encoding_errors: str | None = options.ENCODING_ERRORS,
    header: str | None = options.HEADER,
    freeze_encoder: bool = flag("With --task seq2seq: keep the GPT as it is.", "--freeze-encoder"),
    freeze_layers: int | None = option(
        "Keep the embeddings and this many of the lowest blocks as they are."
    ),
    class_weights: str | None = option(
        "How classes weigh: none, all alike, or balanced, rare ones more."
    ),
    keep_checkpoints: str | None = options.KEEP_CHECKPOINTS,
    seed: int | None = options.SEED,
    name: str | None = options.NAME,
    workspace: Path = options.WORKSPACE,
    recipe: Path | None = options.RECIPE,
    set_: list[str] = options.SET,
    force: bool = options.FORCE,
    dry_run: bool = options.DRY_RUN,
    profile: bool = options.PROFILE,
    threads: int | None = options.THREADS,
    nproc: int | None = options.NPROC,
    max_restarts: int = options.MAX_RESTARTS,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Train a pretrained model on labelled texts, on instructions to answer in a chat, or on pairs
    to translate or summarise. The same command goes on after a stop."""
    if not dry_run:
        launch_processes(nproc, max_restarts)
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.config import parse_assignments, read_recipe, take
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
    asked: dict[str, Any] = {
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
        {key: value for key, value in asked.items() if value is not None},
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
        artefact, up_to_date = finetune(
            place, start, data, config, profile=profile, reporter=reporter, **how
        )
        if up_to_date:
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
