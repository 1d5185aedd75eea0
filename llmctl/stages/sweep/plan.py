"""What a sweep will train: every run by name, checked before the first begins.

What a training is, a sweep is told: this stage knows no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmctl.config import Config, merge
from llmctl.errors import InputError, NameTaken, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.units import short
from llmctl.stages.sweep.grid import Point, tree_of
from llmctl.stages.sweep.halving import Rung, part_of_budget
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.runs import has_diverged

SCHEMA_VERSION = 1
"""The version of the document that ``llmctl sweep --json`` prints; raised when a field changes
meaning."""
MEASURED_DIFFERENTLY = ("data.", "objective.", "arch", "shards", "from", "task", "class_weights")
"""Fields that change what a validation loss is of, not only how low it is."""

SweepState = Literal["new", "interrupted", "diverged", "finished"]


@dataclass(frozen=True)
class Training:
    """One training as a stage would make it."""

    config: Config
    find: Callable[[str], Artefact | None]
    """The run of a name, begun or finished; raises NameTaken if the name is something else's."""
    train: Callable[[str, bool], Artefact]
    """Begin or go on under a name; whether to begin anew, replacing what has the name."""


PrepareTraining = Callable[[Mapping[str, Any]], Training]
"""A training from values laid over all others. Raises UsageError or InputError where it could not
begin."""


@dataclass(frozen=True)
class Planned:
    """A run that a sweep may make."""

    name: str
    training: Training
    seed: int | None
    """Where there are several."""
    state: SweepState
    """How far it was when the sweep began."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run: nothing of it can be refused any more."""

    name: str
    stage: str
    points: list[Point]
    rungs: list[Rung]
    """One, with the whole budget, without halving."""
    runs: list[list[list[Planned]]] = field(repr=False)
    """By rung, point and seed."""

    @property
    def halving(self) -> bool:
        return len(self.rungs) > 1

    def budget(self, rung: int) -> dict[str, Any]:
        """The budget of each run of a rung: fields of ``training``."""
        return part_of_budget(self.runs[rung][0][0].training.config, 1)


def plan(
    workspace: Workspace,
    prepare: PrepareTraining,
    points: Sequence[Point],
    *,
    name: str,
    stage: str,
    rungs: Sequence[Rung] = (),
    seeds: int = 1,
    force: bool = False,
    reporter: Reporter,
) -> Sweep:
    """All runs that a sweep may make. Raises what would stop one of them before any has begun.

    rungs: of successive halving; none: every point trains with its whole budget. seeds: runs of
    each point. force: runs that were made otherwise and those that diverged are made again.
    """
    workspace.path("run", name)
    ladder = list(rungs) or [Rung(len(points), 1)]
    whole = [_prepared(prepare, point) for point in points]
    if len(ladder) > 1:
        _check_budgets(points, whole)
    known = set(workspace.names("run"))
    runs = [
        [
            [
                _planned(prepare, point, training, rung, seed, known, force)
                for seed in _seeds(training, point, seeds)
            ]
            for point, training in zip(points, whole, strict=True)
        ]
        for rung in ladder
    ]
    _note_differently_measured(points, reporter)
    return Sweep(name, stage, list(points), ladder, runs)


def _prepared(prepare: PrepareTraining, point: Point) -> Training:
    """Raises what ``prepare`` raises, with the point where that is the grid's fault."""
    try:
        return prepare(tree_of(point.values))
    except (UsageError, InputError) as error:
        try:
            prepare({})
        except (UsageError, InputError):
            raise error from None
        raise type(error)(f"--grid, at {point.label}: {error}") from None


def _check_budgets(points: Sequence[Point], whole: Sequence[Training]) -> None:
    budgets = [part_of_budget(training.config, 1) for training in whole]
    for point, budget in zip(points, budgets, strict=True):
        for name in budget:
            if f"training.{name}" in point.values:
                raise UsageError(
                    f"--grid training.{name} goes without --halving, which divides it; leave one "
                    "of them out"
                )
        if budget != budgets[0]:
            raise UsageError(
                f"--halving compares equal budgets, and {point.label} has another than "
                f"{points[0].label}; set training.max_steps or training.time_limit"
            )


def _seeds(training: Training, point: Point, count: int) -> list[int | None]:
    """Seeds of a point's runs: as configured and those that follow, or None where there is one
    run."""
    if count == 1:
        return [None]
    if "seed" in point.values:
        raise UsageError("--grid seed and --seeds both choose seeds; leave one of them out")
    seed = getattr(training.config, "seed", None)
    if seed is None:
        raise UsageError("--seeds is not for --arch ngram, which counts; leave it out")
    return [seed + number for number in range(count)]


def _planned(
    prepare: PrepareTraining,
    point: Point,
    whole: Training,
    rung: Rung,
    seed: int | None,
    known: set[str],
    force: bool,
) -> Planned:
    changes: dict[str, Any] = {}
    name = point.name
    if rung.divisor > 1:
        budget = part_of_budget(whole.config, rung.divisor)
        merge(changes, {"training": budget})
        name += "".join(f"-{key}-{short(value)}" for key, value in budget.items())
    if seed is not None:
        changes["seed"] = seed
        name += f"-seed-{seed}"
    values = tree_of(point.values)
    merge(values, changes)
    training = prepare(values) if changes else whole
    return Planned(name, training, seed, _state(training, name, known, force))


def _state(training: Training, name: str, known: set[str], force: bool) -> SweepState:
    if name not in known:
        return "new"
    try:
        existing = training.find(name)
    except (NameTaken, InputError):  # another's, or damaged
        if not force:
            raise
        return "new"
    assert existing is not None
    if existing.finished:
        return "finished"
    if has_diverged(existing):
        return "new" if force else "diverged"
    return "interrupted"


def _note_differently_measured(points: Sequence[Point], reporter: Reporter) -> None:
    names = [key for key in points[0].values if key.startswith(MEASURED_DIFFERENTLY)]
    if names:
        reporter.note(
            f"{', '.join(names)}: this may change what the validation loss is of, so that a lower "
            "one need not be of a better model"
        )


def describe(sweep: Sweep) -> dict[str, Any]:
    """What a sweep would do, as JSON values."""
    whole = sweep.runs[-1]
    rungs = [
        {"budget": sweep.budget(number), "points": rung.size}
        for number, rung in enumerate(sweep.rungs)
    ]
    return {
        **head(sweep),
        **({"rungs": rungs} if sweep.halving else {}),
        "runs": sum(
            rung.size * len(runs[0]) for rung, runs in zip(sweep.rungs, sweep.runs, strict=True)
        ),
        "points": [
            {
                "name": point.name,
                "values": point.values,
                "config": planned[0].training.config.model_dump(mode="json"),
                "states": {run.name: run.state for rung in sweep.runs for run in rung[place]},
            }
            for place, (point, planned) in enumerate(zip(sweep.points, whole, strict=True))
        ],
    }


def head(sweep: Sweep) -> dict[str, Any]:
    """How the documents of a sweep begin."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": sweep.name,
        "stage": sweep.stage,
        "fields": list(sweep.points[0].values),
    }
