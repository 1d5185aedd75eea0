"""``llmctl plan``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, launch, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, option
from llmctl.cli.pretrain import plan_of, resolved
from llmctl.cli.threads import note_others
from llmctl.errors import UsageError

EXAMPLE = "Example: llmctl plan recipes/gpt.toml --price-per-hour 2.5"


@guarded
def command(
    recipe: Path | None = argument(
        "A TOML file; the table of the stage is read.", show_default="the defaults"
    ),
    stage: str = option(
        "What to plan: pretrain or finetune.", default="pretrain", show_default=True
    ),
    arch: str | None = option(
        "The architecture, as llmctl pretrain takes it.", show_default="the recipe's, or bert"
    ),
    preset: str | None = option(
        "The model's size, as llmctl pretrain takes it.", show_default="the recipe's, or mini"
    ),
    budget: str | None = options.BUDGET,
    shards: str | None = options.SHARDS,
    start: str | None = option(
        "With --stage finetune: a run or model folder.",
        "--from",
        autocompletion=artefact_names.RUNS,
    ),
    data: Path | None = option("With --stage finetune: the file to learn from."),
    price_per_hour: float | None = option(
        "What an hour on this machine costs, in any currency.", min=0.0
    ),
    threads: int | None = options.THREADS,
    nproc: int | None = options.NPROC,
    workspace: Path = options.WORKSPACE,
    set_: list[str] = options.SET,
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Say what a training will take on this machine before it starts: parameters, operations,
    memory, time and cost. Its first steps are rehearsed, and nothing is kept of them."""
    start_time = launch.start_time()
    launch.launch_processes(nproc, 0)
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.config import parse_assignments, read_recipe, take

    if stage not in ("pretrain", "finetune"):
        raise UsageError(f"--stage {stage!r} is not known; choose pretrain or finetune")
    names = {"pretrain": ("shards",), "finetune": ("from", "like", "data.file", "task")}[stage]
    named, file = take(read_recipe(recipe, stage) if recipe else {}, *names)
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter)
        if stage == "finetune":
            for option, value in {"--arch": arch, "--preset": preset, "--budget": budget,
                                  "--shards": shards}.items():  # fmt: skip
                if value is not None:
                    raise UsageError(f"{option} goes with --stage pretrain; leave it out")
            start = start or named.get("from") or named.get("like")
            data = data or options.path(named.get("data.file"))
            if start is None or data is None:
                raise UsageError("--stage finetune needs --from, a run, and --data, a file")
            from llmctl.stages.finetune import resolve as resolve_finetune
            from llmctl.stages.plan import plan_finetuning

            task = resolve_finetune(named.get("task"), file, parse_assignments(set_))
            document = plan_finetuning(
                place, start, data, task, reporter, start_time=start_time, price=price_per_hour
            )
        else:
            for option, option_value in {"--from": start, "--data": data}.items():
                if option_value is not None:
                    raise UsageError(f"{option} goes with --stage finetune; leave it out")
            arch, config = resolved(file, arch, preset, budget, {}, set_)
            document = plan_of(arch)(
                place,
                config,
                shards or named.get("shards"),
                reporter,
                start_time=start_time,
                price=price_per_hour,
            )
    if json:
        print_json(document)
        return
    from llmctl.reporting.plan import render_plan

    out().print(render_plan(document["plan"]))
