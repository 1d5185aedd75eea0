"""Sweep: one training for each point of a grid, or for the best of them by successive halving.

Every point is an ordinary run under a name of its own, so what is finished is found again and what
was interrupted goes on; a sweep keeps no state beside its runs.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import torch

from llmctl.config import as_assignments
from llmctl.errors import DivergedError, InputError
from llmctl.reporting.reporter import Reporter
from llmctl.reporting.units import figure
from llmctl.stages.sweep.grid import Point
from llmctl.stages.sweep.plan import Planned, Sweep, head
from llmctl.training.run import finished_before
from llmctl.workspace.artefacts import Artefact, Workspace


@dataclass(frozen=True)
class RunOutcome:
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
    outcomes: list[RunOutcome]
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
    def best(self) -> RunOutcome:
        return min(self.outcomes, key=lambda outcome: outcome.score)


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


def _run(workspace: Workspace, planned: Planned, place: str, reporter: Reporter) -> RunOutcome:
    name = planned.name
    if planned.state == "finished":
        reporter.note(f"[{place}] run {name}: up to date")
        artefact = finished_before(workspace.get("run", name))
        return RunOutcome(planned, "finished", artefact, score_of(artefact))
    if planned.state == "diverged":
        reporter.note(f"[{place}] run {name}: diverged before; --force tries it again")
        return RunOutcome(planned, "diverged", workspace.get("run", name))
    reporter.note(f"[{place}] run {name}")
    # What the run before left in a cycle of references is memory.
    gc.collect()
    if "torch._dynamo" in sys.modules:
        # Kernels are kept by the code that they are of, and after eight models of it no more would
        # be made. Where none were made yet, importing what makes them takes seconds.
        torch.compiler.reset()
    replaces = planned.state == "new" and name in workspace.names("run")
    try:
        artefact = planned.training.train(name, replaces)
    except DivergedError as error:
        reporter.note(f"run {name} diverged and the sweep goes on without it: {error}")
        return RunOutcome(planned, "diverged", workspace.get("run", name))
    return RunOutcome(planned, "finished", artefact, score_of(artefact))


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
        **head(sweep),
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
                "up_to_date": outcome.run.state == "finished",
                "folder": str(outcome.artefact.folder) if outcome.artefact else None,
            }
            for outcome in result.outcomes
        ],
    }
