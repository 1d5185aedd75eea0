"""``llmctl plan``."""

from __future__ import annotations

from pathlib import Path

from llmctl.cli import artefact_names, launch, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, option
from llmctl.cli.threads import note_others

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
    task: str | None = option(
        "What to learn, as llmctl pretrain and llmctl finetune take it.",
        show_default="the recipe's, or the first",
    ),
    preset: str | None = option(
        "The model's size, as llmctl pretrain takes it.", show_default="the recipe's, or mini"
    ),
    budget: str | None = options.BUDGET,
    shards: str | None = options.SHARDS,
    start: str | None = option(
        "A run or model folder to start from.",
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
    option_value, start_time = dict(locals()), launch.start_time()
    launch.launch_processes(nproc, 0)
    from llmctl.cli.console import TerminalReporter, out, print_json
    from llmctl.cli.training import KEYS, request_of
    from llmctl.errors import UsageError
    from llmctl.reporting.plan import render_plan
    from llmctl.stages import plan as stages

    if stage not in OPTIONS:
        raise UsageError(f"--stage {stage!r} is not known; choose pretrain or finetune")
    for owner, parameters in OPTIONS.items():
        for key in parameters - OPTIONS[stage]:
            if option_value[key] is not None:
                option_name = KEYS.get(key, key).partition(".")[0]
                raise UsageError(f"--{option_name} goes with --stage {owner}; leave it out")
    place = options.open_workspace(workspace)
    named = {KEYS.get(key, key): option_value[key] for key in OPTIONS[stage] - {"budget"}}
    fields = {"budget": budget} if stage == "pretrain" else {}
    request = request_of(stage, place, named, fields, option_value)
    with TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter)
        document = stages.plan(
            place, request, reporter, start_time=start_time, price=price_per_hour
        )
    if json:
        print_json(document)
        return
    out().print(render_plan(document["plan"]))


OPTIONS = {
    "pretrain": {"arch", "task", "preset", "budget", "shards", "start"},
    "finetune": {"start", "data", "task"},
}
"""Options by the stage that they go with."""
