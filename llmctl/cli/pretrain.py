"""``llmctl pretrain``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import options
from llmctl.cli.launch import run_together
from llmctl.cli.options import guarded

EXAMPLE = "Example: llmctl pretrain --arch gpt --preset mini --set training.max_steps=2000"


@guarded
def command(
    arch: Annotated[
        str | None,
        typer.Option(
            help="The architecture: bert, gpt (GPT-2), llama (with model.qk_norm a Qwen3), "
            "nanochat, which learns fastest, or ngram, the baseline without a network.",
            show_default="bert",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Its size: nano (for tests), mini (for a laptop), small, medium, …; GPT-2's own "
            "are gpt small (12 layers × 768) and medium (24 × 1024).",
            show_default="mini",
        ),
    ] = None,
    order: Annotated[
        int | None,
        typer.Option(help="With --arch ngram: tokens in the longest n-gram.", show_default="5"),
    ] = None,
    shards: Annotated[
        str | None, typer.Option(help="Shards to train on.", show_default="the newest")
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="Checkpoints kept on disk.", show_default="2")
    ] = None,
    seed: options.SeedOption = None,
    name: options.NameOption = None,
    workspace: options.WorkspaceOption = Path("workspace"),
    recipe: options.RecipeOption = None,
    set_: options.SetOption = [],  # noqa: B006
    force: options.ForceOption = False,
    dry_run: options.DryRunOption = False,
    nproc: options.NprocOption = None,
    max_restarts: options.MaxRestartsOption = 0,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a model on shards. Stopped or killed, the same command goes on where it was."""
    if not dry_run:
        run_together(nproc, max_restarts)
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.config import parse_assignments, read_recipe, take
    from llmctl.errors import UsageError
    from llmctl.reporting.units import figure

    table = read_recipe(recipe, "pretrain") if recipe else {}
    named, from_recipe = take(table, "arch", "preset", "shards")
    arch = arch or named.get("arch", "bert")
    preset = preset or named.get("preset")
    shards = shards or named.get("shards")
    given: dict[str, Any] = {}
    if arch == "ngram":
        from llmctl.stages import ngram

        for option, value in (("--preset", preset), ("--seed", seed)):
            if value is not None:
                raise UsageError(f"{option} is not for --arch ngram, which counts; leave it out")
        if keep_checkpoints is not None:
            raise UsageError("--keep-checkpoints is not for --arch ngram; leave it out")
        if order is not None:
            given["model"] = {"order": order}
        config: Any = ngram.resolve(from_recipe, given, parse_assignments(set_))
        plan: Callable[..., Any] = ngram.plan
        train: Callable[..., Any] = ngram.train_ngram
    else:
        from llmctl.stages import pretrain

        if order is not None:
            raise UsageError(f"--order is for --arch ngram, and this is {arch}; leave it out")
        if seed is not None:
            given["seed"] = seed
        if keep_checkpoints is not None:
            given["training"] = {"keep_checkpoints": keep_checkpoints}
        config = pretrain.resolve(arch, preset, from_recipe, given, parse_assignments(set_))
        plan, train = pretrain.plan, pretrain.pretrain
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        if dry_run:
            print_json(plan(place, config, shards, reporter))
            return
        artefact, there = train(
            place,
            config,
            shards_name=shards,
            name=name,
            force=force,
            reporter=reporter,
        )
        if there:
            reporter.note(f"run {artefact.manifest.name}: up to date")
    summary = artefact.manifest.summary
    if json:
        print_json({"name": artefact.manifest.name, "folder": str(artefact.folder), **summary})
        return
    last = summary.get("validation", {})
    figures = f", validation loss {figure(last.get('loss'), '.4f')}" if last else ""
    if "bits_per_byte" in last:
        figures += f" ({figure(last['bits_per_byte'], '.4f')} bits per byte)"
    what = "n-grams" if arch == "ngram" else "parameters"
    out().print(
        f"run {artefact.manifest.name}: {summary['parameters'] / 1e6:.1f} M {what}, "
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s"
        f"{figures}; model in {artefact.folder / 'model'}"
    )
