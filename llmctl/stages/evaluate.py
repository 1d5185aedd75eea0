"""Evaluate: a model and held-out data to a report, with what is simpler beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.errors import InputError
from llmctl.evaluation.report import MODEL, Report
from llmctl.parsing import read_json_object
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.evaluation import COMPARED, EvaluateConfig, Evaluator, Files
from llmctl.tasks.learned import weak_start
from llmctl.tasks.opened import OpenedModel
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import new_manifest
from llmctl.workspace.names import slug

REPORT = "report.json"


@dataclass(frozen=True)
class Evaluation:
    """A measurement that can be made: what it is made from is found and checked."""

    workspace: Workspace
    evaluator: Evaluator
    identity: Identity
    name: str
    """That of the report."""
    found: Artefact | None
    """The report, where it is there already."""
    reporter: Reporter

    def plan(self) -> dict[str, Any]:
        """The resolved configuration, and what ``run`` would do."""
        inputs = self.identity.inputs
        return {
            "config": self.evaluator.config.model_dump(mode="json"),
            "plan": {
                "name": self.name,
                "up_to_date": self.found is not None,
                "inputs": {
                    record.role: record.name for record in inputs if record.role != COMPARED
                },
                "compare": [record.name for record in inputs if record.role == COMPARED],
            },
        }

    def run(self) -> tuple[Report, Artefact, bool]:
        """Measure; returns the report, its artefact, and whether it was there already.

        Several processes divide the data. Raises InputError where a report that was there is
        damaged.
        """
        world, evaluator, config = get_world(), self.evaluator, self.evaluator.config
        world.barrier()  # until all have found the same
        if self.found is not None:
            self.found.verify()
            return read_report(self.found.folder / REPORT), self.found, True
        manifest = new_manifest(
            "report",
            self.name,
            stage="eval",
            config=config.model_dump(mode="json"),
            identity=self.identity,
            seed=config.seed,
        )
        # Before the work: a report that can't be kept is not worth its minutes.
        self.workspace.prepare("report")
        report = evaluator.run(self.reporter)
        learned = weak_start(self.workspace, evaluator.model.run)
        for note in (*report.notes, *([learned] if learned else [])):
            self.reporter.note(note)
        report = replace(
            report,
            model=evaluator.model.name,
            notes=[*evaluator.notes, *report.notes],
            facts={**report.facts, "learned": learned},
        )
        if world.is_main:
            with self.workspace.publish(manifest) as (target, summary):
                write_json(target / REPORT, report.document())
                summary.update(report.summary)
        world.barrier()
        return report, self.workspace.get("report", self.name), False


def prepare_evaluation(
    workspace: Workspace,
    start: str,
    files: Files,
    config: EvaluateConfig,
    *,
    compare: Sequence[str] = (),
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """A measurement of a model, and of those that it is compared with, on the same data.

    Raises UsageError where options don't go with the model or with one another, InputError for a
    model or a file that isn't there.
    """
    choose_device(config.device, "--device")
    reporter = reporter or Reporter()
    names = {MODEL: start, **{other: other for other in compare}}
    models = {row: OpenedModel.open(workspace, given) for row, given in names.items()}
    model = models[MODEL]
    ways = (way for way in TASKS[model.kind].evaluators() if way.suits(files, config))
    way = next(ways, None)
    if way is None:
        raise InputError(f"{start} is {model.described}, and nothing measures such a model")
    evaluator = way(workspace, models, files, config)
    model_name = start if model.run else slug(Path(start).resolve().name, "model")
    data_name = slug(files.data.name.partition(".")[0], "data") if files.data else "validation"
    identity = Identity.of("eval", config, evaluator.inputs())
    report_name, found = workspace.match(
        "report",
        name,
        f"{model_name}-{data_name}",
        identity,
        force=force,
        note=reporter.note,
    )
    for note in evaluator.notes:
        reporter.note(note)
    return Evaluation(workspace, evaluator, identity, report_name, found, reporter)


def read_report(path: Path) -> Report:
    """A report that was kept. Raises InputError where its file, by whoever wrote it, lacks what
    every report has."""
    with _whole(path):
        return Report.read(read_json_object(path))


def parts_of(report: Report, path: Path) -> list[ReportPart]:
    """What a report has to show. path: where it is kept. Raises InputError where it lacks what a
    report of its kind has."""
    with _whole(path):
        ways = (way for task in TASKS.values() for way in task.evaluators())
        evaluator = {kind: way for way in ways for kind in way.reports}[report.task]
        return [*evaluator.parts(report), *report.remarks()]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Raises InputError where a report lacks a part."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole report ({type(error).__name__}: {error}); make it again with "
            "--force"
        ) from None
