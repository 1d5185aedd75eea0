"""``llmctl sweep``."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli import artefact_names, options
from llmctl.cli.guard import guarded
from llmctl.cli.options import argument, flag, option
from llmctl.cli.threads import note_others
from llmctl.errors import Interrupted, UsageError, did_you_mean

if TYPE_CHECKING:
    from llmctl.cli.sweep_trainings import Trainings

EXAMPLE = "Example: llmctl sweep recipe.toml --grid training.lr=1e-4,3e-4,1e-3 --halving"


@guarded
def command(
    recipe: Path = argument(
        "A TOML file with a table pretrain or finetune.", default=..., metavar="RECIPE"
    ),
    grid: list[str] = option(
        "A field and the values to try, e.g. training.lr=1e-4,3e-4,1e-3; with several fields, "
        "every combination.",
        "--grid",
        default=[],
        metavar="FIELD=V1,V2,…",
    ),
    stage: str | None = option(
        "What to train, where the recipe has both: pretrain or finetune.",
        show_default="the recipe's only one",
    ),
    halving: bool = flag(
        "Successive halving: all train with a part of the recipe's budget (max_steps, time_limit "
        "or epochs), the best of them anew with more, the last with all of it.",
        "--halving",
    ),
    factor: int | None = option(
        "With --halving: 1 in so many goes on, with so many times the budget.", show_default="3"
    ),
    seeds: int = option("Runs of each configuration; their mean is compared.", default=1, min=1),
    shards: str | None = option(
        "With pretrain: shards to train on.",
        autocompletion=artefact_names.COMPLETE_SHARDS,
        show_default="the newest",
    ),
    start: str | None = option(
        "With finetune: a pretrained run, a model folder, or scratch (with --like).",
        "--from",
        autocompletion=artefact_names.RUNS,
        show_default="the recipe's from",
    ),
    data: Path | None = option(
        "With finetune: what to learn from.", show_default="the recipe's data"
    ),
    like: str | None = option(
        "With finetune, and --from scratch: the run whose network it is.",
        autocompletion=artefact_names.RUNS,
    ),
    task: str | None = option("What to learn.", show_default="the recipe's"),
    name: str | None = option(
        "What the runs' names begin with.", "--name", show_default="the recipe's name and the stage"
    ),
    threads: int | None = options.THREADS,
    workspace: Path = options.WORKSPACE,
    set_: list[str] = options.SET,
    force: bool = flag(
        "Replace runs of these names that were made otherwise, and try again what diverged; what "
        "is finished stays.",
        "--force",
    ),
    dry_run: bool = flag("Print the runs and their configurations only.", "--dry-run"),
    json: bool = options.JSON,
    quiet: bool = options.QUIET,
) -> None:
    """Train a run for each point of a grid, or find the best by successive halving. The same
    command goes on after a stop; finished runs are not made again. The best comes first: by the
    validation loss, or by a finetuning's criterion (accuracy for a classifier)."""
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.cli.sweep_trainings import Trainings
    from llmctl.config import as_assignments, parse_assignments, read_recipe
    from llmctl.reporting.sweep import render_sweep
    from llmctl.stages.sweep import plan
    from llmctl.stages.sweep import stage as sweep
    from llmctl.stages.sweep.grid import parse_grid, points
    from llmctl.stages.sweep.halving import DEFAULT_FACTOR, rungs
    from llmctl.workspace.names import slug

    if factor is not None and not halving:
        raise UsageError(f"--factor {factor} goes with --halving; add it, or leave --factor out")
    fields = parse_grid(grid)
    assigned = parse_assignments(set_)
    stage, chosen = (stage, False) if stage else (_stage_of(recipe), True)
    asked = _given(
        stage,
        pretrain={"shards": shards, "task": task},
        finetune={"from": start, "like": like, "task": task, "data": str(data) if data else None},
    )
    table = read_recipe(recipe, stage)
    besides = [word.partition("=")[0] for word in as_assignments({**assigned, **asked})]
    for key in fields:
        if key in besides:
            raise UsageError(f"{key} is in --grid and given besides; leave one of them out")
    name = name or f"{slug(recipe.stem, 'sweep')}-{stage}"
    grid_points = points(name, fields)
    ladder = rungs(len(grid_points), factor or DEFAULT_FACTOR) if halving else []
    place = options.open_workspace(workspace)
    with TerminalReporter(quiet=quiet) as reporter:
        note_others(reporter)
        if chosen:
            reporter.note(f"stage: {stage}, the one that {recipe} has a table for")
        trainings = Trainings(stage, place, recipe, [table, asked, assigned], reporter)
        planned = plan.plan(
            place,
            trainings.prepare,
            grid_points,
            name=name,
            stage=stage,
            rungs=ladder,
            seeds=seeds,
            force=force,
            reporter=reporter,
        )
        if dry_run:
            print_dry_run(plan.describe(planned), None, json=json)
            return
        with _told_how_to_go_on(name, trainings):
            document = sweep.run(place, planned, reporter)
    if json:
        print_json(document)
    else:
        out().print(render_sweep(document))


STAGES = ("pretrain", "finetune")


def _stage_of(recipe: Path) -> str:
    """The one stage that a recipe trains. Raises UsageError if it has both, or none."""
    from llmctl.config import read_tables

    stages = [stage for stage in STAGES if stage in read_tables(recipe)]
    if len(stages) == 1:
        return stages[0]
    if stages:
        raise UsageError(
            f"{recipe} has tables [pretrain] and [finetune]; say which to sweep: --stage pretrain "
            "or --stage finetune"
        )
    raise UsageError(f"{recipe} has no table [pretrain] or [finetune]; add one, empty for defaults")


def _given(stage: str, **options: dict[str, str | None]) -> dict[str, Any]:
    """What options say of a stage. Raises UsageError if the stage, or one of them, is no good."""
    if stage not in options:
        raise UsageError(
            f"--stage {stage!r} is not known{did_you_mean(stage, options)}; choose pretrain or "
            "finetune"
        )
    for owner, values in options.items():
        for name, value in values.items():
            if value is not None and name not in options[stage]:
                raise UsageError(f"--{name} goes with --stage {owner}; leave it out")
    return {key: value for key, value in options[stage].items() if value is not None}


@contextmanager
def _told_how_to_go_on(name: str, trainings: Trainings) -> Iterator[None]:
    """Where a sweep is stopped, the error names the command that goes on with all of it."""
    from llmctl.workspace.commands import command_line

    try:
        yield
    except Interrupted as error:
        # A training names the command that goes on with it alone.
        said, number = str(error).partition("; go on with: ")[0], error.exit_code - 128
    except (KeyboardInterrupt, SystemExit) as error:
        stop = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        said, number = f"stopped by {stop.name} between two trainings", stop
    else:
        return
    words = shlex.join([*command_line(), *trainings.pinned()])
    raise Interrupted(f"sweep {name}: {said}; go on with: {words}", number)
