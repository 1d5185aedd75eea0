"""Evaluate: a model and held-out data to a report, with what is simpler beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.errors import InputError, UsageError
from llmctl.evaluation.report import MODEL, Report
from llmctl.formats.description import MODEL_KINDS
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.contamination import TrainingTexts, find_overlap, rows_of, sentence_of
from llmctl.tasks.evaluation import COMPARED, EvaluateConfig, Evaluator, Files
from llmctl.tasks.kept_reports import REPORT, read_report
from llmctl.tasks.learned import weak_start
from llmctl.tasks.model_card import write_card
from llmctl.tasks.opened import OpenedModel
from llmctl.tasks.suites import HARNESS, SUITES
from llmctl.training.distributed.processes import get_world
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import new_manifest
from llmctl.workspace.names import slug


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
        training = None
        if config.contamination:
            training = _training_of(self.workspace, evaluator)
        report = evaluator.run(self.reporter)
        if training is not None:
            report = _with_contamination(report, training, evaluator, self.reporter)
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
            if evaluator.model.run is not None:
                write_card(self.workspace, evaluator.model.run, self.reporter.note)
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
    finetune: Callable[[str, Path, Any, str], Artefact] | None = None,
) -> Evaluation:
    """A measurement of a model, and of those that it is compared with, on the same data.

    finetune: trains a model, by name, on data, by a configuration, to a run of a name; for what is
    measured by training.

    Raises UsageError where options don't go with the model or with one another, InputError for a
    model or a file that isn't there.
    """
    choose_device(config.device, "--device")
    reporter = reporter or Reporter()
    names = {MODEL: start, **{other: other for other in compare}}
    models = {row: OpenedModel.open(workspace, given) for row, given in names.items()}
    model = models[MODEL]
    evaluator = _way(model, files, config)(workspace, models, files, config)
    if finetune is not None:
        evaluator.finetune = lambda *given: OpenedModel.open(
            workspace, finetune(*given).manifest.name
        )
    model_name = start if model.run else slug(Path(start).resolve().name, "model")
    data_name = "validation"
    if files.data is not None:
        data_name = slug(files.data.name.partition(".")[0], "data")
    elif config.suite is not None:
        data_name = config.suite
    if config.harness is not None:
        data_name = slug(config.harness, "harness")
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


def _training_of(workspace: Workspace, evaluator: Evaluator) -> TrainingTexts:
    """The training text that data is looked for in. Raises UsageError or InputError if there is
    none, or no data."""
    if evaluator.files.data is None:
        raise UsageError(
            "--contamination looks for the test in the training text; give --data FILE"
        )
    return TrainingTexts(workspace, evaluator.model, "--contamination")


def _with_contamination(
    report: Report, training: TrainingTexts, evaluator: Evaluator, reporter: Reporter
) -> Report:
    """The report, with how much of its data stood in the training text."""
    config = evaluator.config
    rows = rows_of(
        evaluator.path,
        columns=config.text_column,
        unit=config.document,
        reading=evaluator.read_options(reporter, as_trained=True),
    )
    found = find_overlap(training, list(rows), reporter, seed=config.seed)
    return replace(
        report,
        notes=[*report.notes, sentence_of(found, evaluator.model.name)],
        facts={**report.facts, "contamination": found},
    )


def _way(model: OpenedModel, files: Files, config: EvaluateConfig) -> type[Evaluator]:
    """What measures a model as it is asked for. Raises UsageError or InputError if nothing does."""
    if config.suite is not None and config.harness is not None:
        raise UsageError("--suite and --harness are two ways of measuring; give one of them")
    if (published := _published(config)) is not None:
        option, way = published
        if model.kind not in way.kinds:
            raise UsageError(
                f"{option} is not for {model.name}, which is {model.described}; give "
                + " or ".join(MODEL_KINDS[kind] for kind in way.kinds)
            )
        return way.for_model(model)
    if files.terms is not None:
        raise UsageError("--terms goes with --suite bias; add it, or leave it out")
    if files.include is not None:
        raise UsageError("--harness-include goes with --harness TASKS; add it")
    for option, owner in (
        ("limit", "--suite or --harness"),
        ("scoring", "--suite or --harness"),
        ("num_fewshot", "--harness"),
        ("apply_chat_template", "--harness"),
    ):
        if getattr(config, option) not in (None, False):
            raise UsageError(f"--{option.replace('_', '-')} goes with {owner}; leave it out")
    ways = (way for way in TASKS[model.kind].evaluators() if way.suits(files, config))
    found = next(ways, None)
    if found is None:
        raise InputError(f"{model.name} is {model.described}, and nothing measures such a model")
    return found.for_model(model)


def _published(config: EvaluateConfig) -> tuple[str, type[Evaluator]] | None:
    """The published tests that are asked for: the option, and what measures by them."""
    if config.suite is not None:
        return f"--suite {config.suite}", SUITES[config.suite].evaluator()
    if config.harness is not None:
        return "--harness", HARNESS.evaluator()
    return None
