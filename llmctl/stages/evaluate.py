"""Evaluate: a model and held-out data to a report, with what is simpler beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.parsing import read_json_object
from llmctl.reporting.reporter import Reporter
from llmctl.stages.evaluate_inputs import COMPARED, Files, Measure, choose
from llmctl.tasks.evaluation import EvaluateConfig, Given, open_subject
from llmctl.tasks.learned import weak_start
from llmctl.tasks.training_data import pretrained_on
from llmctl.training.distributed.processes import current
from llmctl.training.precision import choose_device
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import new_manifest
from llmctl.workspace.names import slug

__all__ = ["REPORT", "EvaluateConfig", "Files", "evaluate_model", "plan"]

REPORT = "report.json"


@dataclass(frozen=True)
class _Resolved:
    """What is to be done, and the report that it gives."""

    given: Given
    measure: Measure
    identity: Identity
    name: str
    found: Artefact | None


def evaluate_model(
    workspace: Workspace,
    start: str,
    files: Files,
    config: EvaluateConfig,
    *,
    compare: Sequence[str] = (),
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> tuple[dict[str, Any], Artefact, bool]:
    """Measure a model; returns the report, its artefact, and whether it was there already.

    compare: further models to measure on the same data, in the same table. Several processes divide
    the data.
    """
    reporter, world = reporter or Reporter(), current()
    resolved = _resolve(workspace, start, files, config, compare, name, force, reporter)
    world.wait()  # until all have found the same
    if resolved.found is not None:
        resolved.found.verify()
        return read_json_object(resolved.found.folder / REPORT), resolved.found, True
    manifest = new_manifest(
        "report",
        resolved.name,
        stage="eval",
        config=config.model_dump(mode="json"),
        identity=resolved.identity,
        seed=config.seed,
    )
    # Before the work: a report that can't be kept is not worth its minutes.
    workspace.prepare("report")
    report = {"model": start, **resolved.measure(resolved.given, config, reporter)}
    subject = resolved.given.subject
    # Beside the report's notes, which are of this measurement.
    report["learned"] = weak_start(workspace, subject.run)
    noticed = []
    if report["task"] == "perplexity" and files.data is not None:
        known = pretrained_on(workspace, subject.finetuned, files.data)
        report["training_file"] = bool(known)
        noticed += known
    for note in (*noticed, report["learned"]):
        if note is not None:
            reporter.note(note)
    report["notes"] = [*report["notes"], *noticed]
    if world.is_main:
        with workspace.publish(manifest) as (target, summary):
            write_json(target / REPORT, report)
            summary.update(report["summary"])
    world.wait()
    return report, workspace.get("report", resolved.name), False


def plan(
    workspace: Workspace,
    start: str,
    files: Files,
    config: EvaluateConfig,
    *,
    compare: Sequence[str] = (),
    name: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """The resolved configuration, and what ``evaluate_model`` would do."""
    reporter = reporter or Reporter()
    resolved = _resolve(workspace, start, files, config, compare, name, force, reporter)
    return {
        "config": config.model_dump(mode="json"),
        "plan": {
            "name": resolved.name,
            "up_to_date": resolved.found is not None,
            "inputs": {r.role: r.name for r in resolved.identity.inputs if r.role != COMPARED},
            "compare": [r.name for r in resolved.identity.inputs if r.role == COMPARED],
        },
    }


def _resolve(
    workspace: Workspace,
    start: str,
    files: Files,
    config: EvaluateConfig,
    compare: Sequence[str],
    name: str | None,
    force: bool,
    reporter: Reporter,
) -> _Resolved:
    choose_device(config.device, "--device")
    subject = open_subject(workspace, start)
    others = {other: open_subject(workspace, other) for other in compare}
    given, measure, inputs = choose(workspace, subject, others, files, config)
    model_name = start if subject.run else slug(Path(start).resolve().name, "model")
    data_name = slug(files.data.name.partition(".")[0], "data") if files.data else "validation"
    identity = Identity.of("eval", config, inputs)
    report_name, found = workspace.match(
        "report",
        name,
        f"{model_name}-{data_name}",
        identity,
        force=force,
        note=reporter.note,
    )
    for note in given.notes:
        reporter.note(note)
    return _Resolved(given, measure, identity, report_name, found)
