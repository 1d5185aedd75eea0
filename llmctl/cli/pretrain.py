"""``llmctl pretrain``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.cli import launch, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import option
from llmctl.cli.threads import note_others
from llmctl.errors import UsageError

EXAMPLE = "Example: llmctl pretrain --arch gpt --preset mini --set training.max_steps=2000"


@guarded
def command(
    arch: str | None = option(
        "The architecture: bert, gpt (GPT-2), llama, qwen2, qwen3, mistral, nanochat, which learns "
        "fastest, or ngram, the baseline without a network.",
        show_default="bert",
    ),
    preset: str | None = option(
        "The model's size: nano (for tests), mini (for a laptop), small, medium, …; GPT-2's own "
        "are gpt small (12 layers × 768) and medium (24 × 1024).",
        show_default="mini",
    ),
    order: int | None = option(
        "With --arch ngram: tokens in the longest n-gram.", show_default="5"
    ),
    budget: str | None = options.BUDGET,
    shards: str | None = options.SHARDS,
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
    """Train a model on shards. Stopped or killed, the same command goes on where it was."""
    start_time = launch.start_time()
    launch.launch_processes(nproc, max_restarts)
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.config import read_recipe, take
    from llmctl.reporting.units import figure

    asked: dict[str, Any] = {}
    if order is not None:
        asked["model"] = {"order": order}
    if seed is not None:
        asked["seed"] = seed
    asked |= options.checkpoints(keep_checkpoints)
    named, file = take(read_recipe(recipe, "pretrain") if recipe else {}, "shards")
    shards = shards or named.get("shards")
    arch, config = resolved(file, arch, preset, budget, asked, set_)
    if profile and arch == "ngram":
        raise UsageError("--profile is not for --arch ngram, which counts; leave it out")
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter)
        if dry_run:
            print_dry_run(
                plan_of(arch)(place, config, shards, reporter, start_time=start_time),
                config,
                json=json,
            )
            return
        artefact, up_to_date = _train_of(arch)(
            place,
            config,
            shards_name=shards,
            name=name,
            force=force,
            start_time=start_time,
            reporter=reporter,
            **({} if arch == "ngram" else {"profile": profile}),
        )
        if up_to_date:
            reporter.note(f"run {artefact.manifest.name}: up to date")
    summary = artefact.manifest.summary
    if json:
        print_json({"name": artefact.manifest.name, "folder": str(artefact.folder), **summary})
        return
    last = summary.get("validation", {})
    figures = f", validation loss {figure(last.get('loss'), '.4f')}" if last else ""
    if "bits_per_byte" in last:
        figures += f" ({figure(last['bits_per_byte'], '.4f')} bits per byte)"
    if "budget" in summary:
        figures += f", predicted {figure(summary['budget']['predicted_loss'], '.2f')}"
    what = "n-grams" if arch == "ngram" else "parameters"
    out().print(
        f"run {artefact.manifest.name}: {summary['parameters'] / 1e6:.1f} M {what}, "
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s"
        f"{figures}; model in {artefact.folder / 'model'}"
    )


def resolved(
    file: Mapping[str, Any],
    arch: str | None,
    preset: str | None,
    budget: str | None,
    asked: Mapping[str, Any],
    assignments: Sequence[str],
) -> tuple[str, Any]:
    """The architecture, and the configuration of its pretraining: ``file`` is a recipe's table,
    ``asked`` what options say.

    Raises UsageError for options that don't go with the architecture.
    """
    from llmctl.config import Recipe, parse_assignments

    # A recipe keeps its path, for messages.
    table = Recipe(file, file.path) if isinstance(file, Recipe) else dict(file)
    of_recipe = {key: table.pop(key, None) for key in ("arch", "preset")}
    arch = arch or of_recipe["arch"] or "bert"
    preset = preset or of_recipe["preset"]
    asked = dict(asked)
    sets = parse_assignments(assignments)
    if arch == "ngram":
        from llmctl.tasks.ngram import train as ngram

        if (asked.get("training") or {}).get("keep_checkpoints") is not None:
            raise UsageError("--keep-checkpoints is not for --arch ngram; leave it out")
        for option, value in {
            "--preset": preset, "--seed": asked.get("seed"), "--budget": budget,
        }.items():  # fmt: skip
            if value is not None:
                raise UsageError(f"{option} is not for --arch ngram, which counts; leave it out")
        return arch, ngram.resolve(table, asked, sets)
    from llmctl.stages import pretrain

    if "order" in asked.get("model", {}):
        raise UsageError(f"--order is for --arch ngram, and this is {arch}; leave it out")
    if budget is not None:
        asked["budget"] = budget
        # Over the recipe's length, as any option is; --set still has the last word.
        length = {"time_limit": None, "max_steps": None}
        asked["training"] = {**asked.get("training", {}), **length}
    return arch, pretrain.resolve(arch, preset, table, asked, sets)


def plan_of(arch: str) -> Callable[..., dict[str, Any]]:
    """What tells the plan of an architecture's pretraining."""
    if arch == "ngram":
        from llmctl.tasks.ngram.train import plan

        return plan
    from llmctl.stages.plan import plan_pretraining

    return plan_pretraining


def _train_of(arch: str) -> Callable[..., Any]:
    if arch == "ngram":
        from llmctl.tasks.ngram.train import train_ngram

        return train_ngram
    from llmctl.stages.pretrain import pretrain

    return pretrain
