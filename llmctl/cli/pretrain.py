"""``llmctl pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import options
from llmctl.cli.options import guarded

EXAMPLE = "Example: llmctl pretrain --arch bert --preset mini --set training.max_steps=2000"


@guarded
def command(
    arch: Annotated[
        str | None, typer.Option(help="The architecture: bert.", show_default="bert")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Its size: nano (2 layers × 128), mini (4 × 256), small (4 × 512), medium "
            "(8 × 512), base (12 × 768).",
            show_default="mini",
        ),
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
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a model on shards. Stopped or killed, the same command goes on where it was."""
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.config import parse_assignments, read_recipe
    from llmctl.reporting.units import figure
    from llmctl.stages.pretrain import plan, pretrain, resolve

    from_recipe = read_recipe(recipe, "pretrain") if recipe else {}
    chosen = {key: from_recipe.pop(key, None) for key in ("arch", "preset")}
    arch = arch or chosen["arch"] or "bert"
    preset = preset or chosen["preset"]
    given: dict[str, Any] = {}
    if seed is not None:
        given["seed"] = seed
    if keep_checkpoints is not None:
        given["training"] = {"keep_checkpoints": keep_checkpoints}
    config = resolve(arch, preset, from_recipe, given, parse_assignments(set_))
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        if dry_run:
            print_json(plan(place, config, shards, reporter))
            return
        artefact, there = pretrain(
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
    out().print(
        f"run {artefact.manifest.name}: {summary['parameters'] / 1e6:.1f} M parameters, "
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s"
        f"{figures}; model in {artefact.folder / 'model'}"
    )
