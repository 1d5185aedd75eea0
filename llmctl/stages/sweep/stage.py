"""Sweep: one training for each point of a grid, or for the best of them by successive halving.

Every point is an ordinary run under a name of its own, so what is finished is found again and what
was interrupted goes on; a sweep keeps no state beside its runs. What a training is, it is told:
this stage knows no other.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

import torch

from llmctl.config import Config, as_assignments, merge
from llmctl.errors import DivergedError, InputError, NameTaken, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.units import figure, short
from llmctl.stages.sweep.grid import Point, tree_of
from llmctl.stages.sweep.halving import Rung, part_of_budget
from llmctl.training.run import finished_before
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.runs import has_diverged

SCHEMA_VERSION = 1
"""Of the document that ``llmctl sweep --json`` prints; raised when a field changes meaning."""
MEASURED_DIFFERENTLY = ("data.", "objective.", "arch", "shards", "from", "task", "class_weights")
"""Fields that change what a validation loss is of, not only how low it is."""

State = Literal["new", "interrupted", "diverged", "finished"]


@dataclass(frozen=True)
class Training:
    """One training as a stage would make it."""

    config: Config
    find: Callable[[str], Artefact | None]
    """The run of a name, begun or finished; raises NameTaken if the name is something else's."""
    train: Callable[[str, bool], Artefact]
    """Begin or go on under a name; whether to begin anew, replacing what has the name."""


Prepare = Callable[[Mapping[str, Any]], Training]
"""A training from values laid over all others. Raises UsageError or InputError where it could not
begin."""


@dataclass(frozen=True)
class Planned:
    """A run that a sweep may make."""

    name: str
    training: Training
    seed: int | None
    """Where there are several."""
    found: State
    """How far it was when the sweep began."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    run: Planned
    state: Literal["finished", "diverged"]
    artefact: Artefact | None
    score: float = math.inf
    """Lower where a model is better; infinite where it diverged, or nothing was held out."""


@dataclass(frozen=True)
class Result:
    """What came of a point, in the last rung that it reached."""

    point: Point
    rung: int
    outcomes: list[Outcome]
    order: int
    """In the grid; breaks ties."""

    @property
    def score(self) -> float:
        """The mean over seeds; a point that diverged with one of them is none to go on with."""
        return fmean(outcome.score for outcome in self.outcomes)

    @property
    def diverged(self) -> bool:
        return any(outcome.state == "diverged" for outcome in self.outcomes)

    @property
    def best(self) -> Outcome:
        return min(self.outcomes, key=lambda outcome: outcome.score)


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
        """Of each run of a rung: fields of ``training``."""
        return part_of_budget(self.runs[rung][0][0].training.config, 1)


def plan(
    workspace: Workspace,
    prepare: Prepare,
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


def _prepared(prepare: Prepare, point: Point) -> Training:
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
    """Of a point's runs: as configured and those that follow, or None where there is one run."""
    if count == 1:
        return [None]
    if "seed" in point.values:
        raise UsageError("--grid seed and --seeds both choose seeds; leave one of them out")
    seed = getattr(training.config, "seed", None)
    if seed is None:
        raise UsageError("--seeds is not for --arch ngram, which counts; leave it out")
    return [seed + number for number in range(count)]


def _planned(
    prepare: Prepare,
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


def _state(training: Training, name: str, known: set[str], force: bool) -> State:
    if name not in known:
        return "new"
    try:
        found = training.find(name)
    except (NameTaken, InputError):  # another's, or damaged
        if not force:
            raise
        return "new"
    assert found is not None
    if found.finished:
        return "finished"
    if has_diverged(found):
        return "new" if force else "diverged"
    return "interrupted"


def _note_differently_measured(points: Sequence[Point], reporter: Reporter) -> None:
    names = [key for key in points[0].values if key.startswith(MEASURED_DIFFERENTLY)]
    if names:
        reporter.note(
            f"{', '.join(names)}: this may change what the validation loss is of, so that a lower "
            "one need not be of a better model"
        )


def run(workspace: Workspace, sweep: Sweep, reporter: Reporter) -> dict[str, Any]:
    """Train what is not finished; returns what came of it, the best first, as JSON values.

    Raises InputError where halving has nothing to choose by, and DivergedError if every point
    diverged; what a training raises, but for its divergence, passes through.
    """
    results: dict[str, Result] = {}
    ladder: list[dict[str, Any]] = []
    places = list(range(len(sweep.points)))
    for number in range(len(sweep.rungs)):
        if sweep.halving:
            reporter.note(
                f"rung {number + 1} of {len(sweep.rungs)}: {_count(len(places))} with "
                + ", ".join(as_assignments({"training": sweep.budget(number)}))
            )
        total, done = sum(len(sweep.runs[number][place]) for place in places), 0
        for place in places:
            outcomes = []
            for planned in sweep.runs[number][place]:
                done += 1
                outcomes.append(_run(workspace, planned, f"{done}/{total}", reporter))
            point = sweep.points[place]
            results[point.name] = Result(point, number, outcomes, place)
        best = ranked([results[sweep.points[place].name] for place in places])
        if sweep.halving:
            next_size = sweep.rungs[number + 1].size if number + 1 < len(sweep.rungs) else 1
            best = _kept(best, next_size)
            ladder.append(
                {
                    "budget": sweep.budget(number),
                    "points": len(places),
                    "kept": [result.point.name for result in best],
                }
            )
            shown = ", ".join(f"{r.point.label} ({figure(r.score, '.4f')})" for r in best)
            reporter.note(
                f"rung {number + 1}: kept {len(best)} of {len(places)}: {shown or 'none'}"
            )
            places = sorted(result.order for result in best)
            if not places:
                break
    return _document(sweep, ranked(list(results.values())), ladder)


def _run(workspace: Workspace, planned: Planned, place: str, reporter: Reporter) -> Outcome:
    name = planned.name
    if planned.found == "finished":
        reporter.note(f"[{place}] run {name}: up to date")
        artefact = finished_before(workspace.get("run", name))
        return Outcome(planned, "finished", artefact, score_of(artefact))
    if planned.found == "diverged":
        reporter.note(f"[{place}] run {name}: diverged before; --force tries it again")
        return Outcome(planned, "diverged", workspace.get("run", name))
    reporter.note(f"[{place}] run {name}")
    # What the run before left in a cycle of references is memory.
    gc.collect()
    if "torch._dynamo" in sys.modules:
        # Kernels are kept by the code that they are of, and after eight models of it no more would
        # be made. Where none were made yet, importing what makes them takes seconds.
        torch.compiler.reset()
    anew = planned.found == "new" and name in workspace.names("run")
    try:
        artefact = planned.training.train(name, anew)
    except DivergedError as error:
        reporter.note(f"run {name} diverged and the sweep goes on without it: {error}")
        return Outcome(planned, "diverged", workspace.get("run", name))
    return Outcome(planned, "finished", artefact, score_of(artefact))


def score_of(artefact: Artefact) -> float:
    """What runs are ranked by, lower is better: a finetuning's criterion, which chose its best
    weights, else the validation loss; infinite where nothing was held out."""
    summary = artefact.manifest.summary
    score = summary.get("criterion", summary.get("validation", {}).get("loss"))
    return float(score) if score is not None and math.isfinite(score) else math.inf


def ranked(results: Sequence[Result]) -> list[Result]:
    """The furthest rung first, in it the lowest score, of equals the first in the grid; what
    diverged last."""
    return sorted(results, key=lambda r: (r.diverged, -r.rung, r.score, r.order))


def _kept(best: Sequence[Result], size: int) -> list[Result]:
    """The best of a rung that go on. Raises InputError if there is nothing to tell them by."""
    able = [result for result in best if not result.diverged]
    unmeasured = next((result for result in able if not math.isfinite(result.score)), None)
    if unmeasured is not None:
        raise InputError(
            f"run {unmeasured.best.run.name} has no validation loss, by which --halving chooses; "
            "hold out some of the data (tokenize --validation, data.validation)"
        )
    return able[:size]


def _count(number: int) -> str:
    return f"{number} configuration{'s' * (number != 1)}"


def _document(
    sweep: Sweep, results: Sequence[Result], ladder: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    best = results[0]
    if best.diverged:
        raise DivergedError(
            f"all {_count(len(results))} diverged; sweep lower values of training.learning_rate"
        )
    return {
        **_head(sweep),
        **({"rungs": list(ladder)} if sweep.halving else {}),
        "judged_by": "criterion" if _has_criterion(best) else "validation loss",
        "best": best.best.run.name if math.isfinite(best.score) else None,
        "points": [_line(sweep, result) for result in results],
    }


def _has_criterion(result: Result) -> bool:
    artefact = result.best.artefact
    assert artefact is not None
    summary = artefact.manifest.summary
    return "criterion" in summary and summary["criterion"] != summary["validation"]["loss"]


def _head(sweep: Sweep) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": sweep.name,
        "stage": sweep.stage,
        "fields": list(sweep.points[0].values),
    }


def _line(sweep: Sweep, result: Result) -> dict[str, Any]:
    scores = [outcome.score for outcome in result.outcomes]
    summaries = [o.artefact.manifest.summary for o in result.outcomes if o.artefact is not None]
    looks = [s["validation"] for s in summaries if "validation" in s]
    figures = {
        key: fmean(look[key] for look in looks)
        for key in (looks[0] if looks else {})
        if len(looks) == len(scores) and all(look.get(key) is not None for look in looks)
    }
    state = "diverged" if result.diverged else "finished"
    dropped = sweep.halving and result.rung < len(sweep.rungs) - 1 and state == "finished"
    return {
        "name": result.point.name,
        "values": result.point.values,
        "state": f"dropped in rung {result.rung + 1}" if dropped else state,
        **({"rung": result.rung + 1} if sweep.halving else {}),
        "score": result.score,
        **({"deviation": stdev(scores)} if len(scores) > 1 and math.isfinite(result.score) else {}),
        "validation": figures,
        "steps": max((s.get("steps", 0) for s in summaries), default=0),
        "seconds": sum(s.get("seconds", 0.0) for s in summaries),
        "runs": [
            {
                "name": outcome.run.name,
                **({"seed": outcome.run.seed} if outcome.run.seed is not None else {}),
                "state": outcome.state,
                "score": outcome.score,
                "up_to_date": outcome.run.found == "finished",
                "folder": str(outcome.artefact.folder) if outcome.artefact else None,
            }
            for outcome in result.outcomes
        ],
    }


def describe(sweep: Sweep) -> dict[str, Any]:
    """What a sweep would do, as JSON values."""
    whole = sweep.runs[-1]
    rungs = [
        {"budget": sweep.budget(number), "points": rung.size}
        for number, rung in enumerate(sweep.rungs)
    ]
    return {
        **_head(sweep),
        **({"rungs": rungs} if sweep.halving else {}),
        "runs": sum(
            rung.size * len(runs[0]) for rung, runs in zip(sweep.rungs, sweep.runs, strict=True)
        ),
        "points": [
            {
                "name": point.name,
                "values": point.values,
                "config": planned[0].training.config.model_dump(mode="json"),
                "states": {run.name: run.found for rung in sweep.runs for run in rung[place]},
            }
            for place, (point, planned) in enumerate(zip(sweep.points, whole, strict=True))
        ],
    }
