"""What ``pretrain`` and ``finetune`` do around their stage, and how they tell what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmctl.cli import options
from llmctl.cli.threads import note_others
from llmctl.errors import UsageError

if TYPE_CHECKING:
    from llmctl.workspace.artefacts import Workspace

BESIDES = frozenset(
    {
        "name", "workspace", "recipe", "set_", "force", "dry_run", "profile", "threads", "nproc",
        "max_restarts", "json", "quiet",
    }
)  # fmt: skip
"""Parameters of a training's command that are no fields of its configuration."""


def run(
    stage: str, parameters: Mapping[str, Any], *named: str, start_time: float, timed: bool
) -> None:
    """Train what a command asks for, or print what a dry run finds.

    parameters: of the command, by name. named: those that say what is trained on and from; the
    others but ``BESIDES`` are fields of the configuration. timed: a dry run tries some steps.
    """
    options.load_pytorch()
    from llmctl.cli.console import TerminalReporter, out, print_dry_run, print_json
    from llmctl.stages import train
    from llmctl.stages.plan import plan
    from llmctl.tasks.base import InstantTask

    given = dict(parameters)
    place, how = (
        options.open_workspace(given["workspace"]),
        {k: given[k] for k in ("name", "force")},
    )
    request = request_of(
        stage,
        place,
        {KEYS.get(key, key): given[key] for key in named},
        {key: value for key, value in given.items() if key not in {*named, *BESIDES}},
        given,
    )
    config = request.config
    if given["profile"] and issubclass(request.task, InstantTask):
        raise UsageError(f"--profile is not for --arch {config.arch}, which counts; leave it out")
    with TerminalReporter(quiet=given["quiet"]) as reporter:
        note_others(reporter)
        if given["dry_run"]:
            document = (
                plan(place, request, reporter, start_time=start_time)
                if timed
                else train.outline(place, request, reporter=reporter, **how)
            )
            print_dry_run(document, config, json=given["json"])
            return
        artefact, up_to_date = train.train(
            place,
            request,
            start_time=start_time,
            profile=given["profile"],
            reporter=reporter,
            **how,
        )
        if up_to_date:
            reporter.note(f"run {artefact.manifest.name}: up to date")
    summary = artefact.manifest.summary
    if given["json"]:
        print_json({"name": artefact.manifest.name, "folder": str(artefact.folder), **summary})
        return
    size = f"{summary['parameters'] / 1e6:.1f} M {request.task.size_unit}"
    told = f"run {artefact.manifest.name}: {_told(summary, size)}"
    out().print(f"{told}; model in {artefact.folder / 'model'}")


KEYS = {"start": "from", "data": "data.file"}
"""Parameters that a recipe calls otherwise."""


def request_of(
    stage: str,
    workspace: Workspace,
    named: Mapping[str, Any],
    fields: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> Any:
    """What a command asks for, with its recipe and ``--set``."""
    from llmctl.config import parse_assignments, read_recipe
    from llmctl.stages import train

    recipe = read_recipe(parameters["recipe"], stage) if parameters["recipe"] else {}
    # A flag, or a list, that isn't given says nothing.
    given = {k: None if value is False or value == [] else value for k, value in fields.items()}
    if (kept := given.get("keep_checkpoints")) is not None:
        given["keep_checkpoints"] = int(kept) if kept.isdecimal() else kept
    return train.request_of(
        stage, workspace, named, given, recipe, parse_assignments(parameters["set_"])
    )


def _told(summary: Mapping[str, Any], size: str) -> str:
    """A finished training in a line. size: of the model."""
    from llmctl.reporting.units import figure

    last = summary.get("validation", {})
    figures = f", validation loss {figure(last.get('loss'), '.4f')}" if last else ""
    if "bits_per_byte" in last and "train_examples" not in summary:
        figures += f" ({figure(last['bits_per_byte'], '.4f')} bits per byte)"
    if "budget" in summary:
        figures += f", predicted {figure(summary['budget']['predicted_loss'], '.2f')}"
    if "reward" in last:
        figures = f", reward {figure(last['reward'], '.3f')}"
    if "preference_accuracy" in last:
        figures += f", {last['preference_accuracy']:.1%} of pairs in the right order"
    if "accuracy" in last:
        figures += f" and accuracy {last['accuracy']:.1%}"
    if "entity_f1" in last:
        figures += f", entity F1 {last['entity_f1']:.1%}"
    if summary.get("best_step"):
        # Another step may have had a lower loss.
        judged = next((name for name in ("accuracy", "pearson", "reward") if name in last), "loss")
        judged = "entity F1" if "entity_f1" in last else judged
        figures += f" at step {summary['best_step']}, the best by {judged}"
    steps, seconds = f"{summary['steps']:,} steps", f"in {summary['seconds']:.0f} s"
    if "train_examples" in summary:
        return f"{summary['train_examples']:,} examples, {steps} {seconds}{figures}"
    return f"{size}, {steps}, {summary['tokens']:,} tokens {seconds}{figures}"
