"""Extending a finished run: the same training, longer, under the same name.

Batches go on where they were, as batch N is a function of N alone. What becomes of the learning
rate depends on the schedule. A constant one goes on as it is, and N steps and as many more are 2N
at once, to the bit (without a warm-up, which is a share of the whole). One that had fallen by the
end is warmed up again to where that of the longer training is by now: what it had fallen for is
lost, which the same number of steps at once would not have spent. Warm-up–stable–decay goes on
from a checkpoint before the fall, where one was kept (Hägele et al. 2024).

Without checkpoints there are the finished weights, and the optimiser's averages begin anew.

The finished model stays until the new one stands, and the manifest that describes it lies beside
the new one: it comes back where the longer training diverges.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.config import flat
from llmctl.errors import InputError, UsageError
from llmctl.formats.open import open_folder
from llmctl.reporting.units import duration
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.progress import Progress
from llmctl.training.trainer import Trainer
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import write_json
from llmctl.workspace.identity import Identity
from llmctl.workspace.manifests import MANIFEST, Manifest, write_manifest

LENGTH = ("training.max_steps", "training.epochs", "training.time_limit")
"""Fields that say how long a training is."""
BEFORE = "before.json"
"""The manifest of the finished run, while it is extended."""
EXTENDED = "extended"
"""Where a manifest's summary tells of it."""


def shorter_run(workspace: Workspace, name: str, identity: Identity) -> Artefact | None:
    """The finished run of a name that is what is asked for but for its length."""
    if name not in workspace.names("run"):
        return None
    try:
        run = workspace.get("run", name)
    except InputError:  # damaged, which what looks for it next tells
        return None
    manifest = run.manifest
    if manifest.identity is None:
        then = flat(manifest.config)
    else:
        then = {**manifest.defaults, **manifest.identity}
    length = {key: then[key] for key in LENGTH if key in then}
    same = identity.changed(length).made(manifest) and not identity.made(manifest)
    return run if run.finished and same else None


def find_run(
    workspace: Workspace,
    name: str | None,
    default: str,
    identity: Identity,
    *,
    force: bool,
    note: Callable[[str], None],
) -> tuple[str, Artefact | None, Manifest | None]:
    """The name of a training's run, the run where it is begun or done already, and its manifest
    where it is done and is to be longer now.

    Raises NameTaken if something else has the name, unless ``force``.
    """
    if name is not None and not force:
        shorter = shorter_run(workspace, name, identity)
        if shorter is not None:
            return name, shorter, shorter.manifest
    chosen, existing = workspace.match("run", name, default, identity, force=force, note=note)
    if name is None and existing is None and not force:
        shorter = shorter_run(workspace, default, identity)
        if shorter is not None:
            note(f"run {default} is the same but for its length: --name {default} goes on with it")
    return chosen, existing, None


def longer(manifest: Manifest, before: Manifest) -> Manifest:
    """The manifest of a run that is extended, from that of the longer training."""
    return manifest.model_copy(
        update={"created": before.created, "summary": before.summary, "files": before.files}
    )


def begin(
    folder: Path,
    manifest: Manifest,
    before: Manifest,
    trainer: Trainer,
    store: CheckpointStore,
    note: Callable[[str], None],
) -> Manifest:
    """Decide where a finished run goes on, and write it down; returns the manifest.

    Raises UsageError if it is no longer than it was, or can't go on. All processes must call it,
    and the main one writes.
    """
    steps, config = int(before.summary["steps"]), trainer.config
    _check_longer(before, trainer)
    falls = config.schedule != "constant"
    saved = [step for step in store.steps() if step <= steps]
    stable = [step for step in saved if _is_stable(step, steps, config)]
    record: dict[str, Any] = {
        "steps": steps,
        "command": before.command,
        "from_step": stable[-1] if stable else saved[-1] if saved else steps,
        "optimiser": "kept" if saved else "fresh",
        "warmed_up_again": not stable and (falls or not saved),
    }
    if not saved:
        weights_of(folder, trainer)
        record["weights_of_step"] = before.summary.get("best_step") or steps
    note(f"run {manifest.name} goes on for longer: {_described(record, trainer)}")
    extended = [*before.summary.get(EXTENDED, []), record]
    manifest = manifest.model_copy(update={"summary": {**before.summary, EXTENDED: extended}})
    if trainer.world.is_main:
        write_json(folder / BEFORE, before.model_dump(mode="json"))
        write_manifest(folder, manifest)
        store.remove_after(record["from_step"])
    trainer.world.barrier()
    return manifest


def _check_longer(before: Manifest, trainer: Trainer) -> None:
    steps, limit = int(before.summary["steps"]), trainer.config.time_limit
    seconds = float(before.summary["seconds"])
    told = None
    if trainer.total_steps is not None and trainer.total_steps <= steps:
        told = f"{steps:,} steps, and {trainer.total_steps:,} are asked for"
    elif limit is not None and limit <= seconds:
        told = f"{duration(seconds)} of training, and training.time_limit is {duration(limit)}"
    if told is not None:
        raise UsageError(
            f"run {before.name} is finished after {told}: give more to go on with it, choose "
            "another --name for a shorter training, or --force to replace it"
        )


def _is_stable(step: int, steps: int, config: TrainingConfig) -> bool:
    """Whether a checkpoint of warm-up–stable–decay is from before the fall."""
    if config.schedule != "wsd" or config.time_limit is not None:
        return False
    return config.warmup <= step / steps and (step - 1) / steps <= 1 - config.decay


def _described(record: dict[str, Any], trainer: Trainer) -> str:
    """What happens, in words."""
    total = f" to {trainer.total_steps:,}" if trainer.total_steps else ""
    where = f"from step {record['from_step']:,}{total}"
    if record["optimiser"] == "fresh":
        best = record["weights_of_step"]
        which = f" (those of step {best:,}, the best)" if best != record["steps"] else ""
        return (
            f"{where}, from the finished weights{which}, as its checkpoints are gone; the "
            "optimiser's averages begin anew and the learning rate is warmed up again "
            "(--keep-checkpoints last would keep what goes on exactly)"
        )
    if record["warmed_up_again"]:
        return (
            f"{where}; the learning rate had fallen for the end, and is warmed up again to where "
            "the schedule of the longer training is"
        )
    if record["from_step"] < record["steps"]:
        return f"{where}, the last checkpoint before the learning rate began to fall"
    return f"{where}, as if it had not ended; the learning rate stays as it is"


def restore(
    folder: Path, manifest: Manifest, trainer: Trainer, store: CheckpointStore, step: int | None
) -> None:
    """Set a trainer where a run that is extended goes on, after its checkpoint of a step, if there
    is one, was restored."""
    record = manifest.summary[EXTENDED][-1]
    store.keep_besides(record["from_step"])
    if step is None:
        summary = manifest.summary
        trainer.start_from(
            weights_of(folder, trainer),
            Progress(
                step=record["steps"],
                elapsed=float(summary["seconds"]),
                tokens=int(summary["tokens"]),
                best=_or_infinite(summary.get("criterion")),
                best_step=int(summary.get("best_step") or 0),
                lowest_loss=_or_infinite(summary.get("validation", {}).get("loss")),
            ),
        )
    if step is None or step <= record["from_step"]:
        trainer.extend(warm_up=record["warmed_up_again"])


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def weights_of(folder: Path, trainer: Trainer) -> dict[str, Tensor]:
    """The finished model's weights by the trainer's names. Raises UsageError where they are not
    those that it trains."""
    weights: dict[str, Tensor] = open_folder(folder / "model").network().state_dict()
    if weights.keys() != trainer.model.state_dict().keys():
        raise UsageError(
            f"run {folder.name} can't go on: its checkpoints are gone and its model holds what was "
            "trained merged with the rest; finetune from it under another --name, or make it again "
            "with --force and --keep-checkpoints last"
        )
    return weights


def is_extended(folder: Path) -> bool:
    """Whether a run is being extended, or was about to be."""
    return (folder / BEFORE).exists()


def put_back(
    folder: Path, store: CheckpointStore, manifest: Manifest, note: Callable[[str], None]
) -> None:
    """Leave a run as it was before a longer training that came to nothing."""
    with contextlib.suppress(Exception):
        store.wait()
    store.remove_after(manifest.summary[EXTENDED][-1]["from_step"])
    (folder / BEFORE).replace(folder / MANIFEST)
    note(f"run {manifest.name} is as it was before it was trained for longer")
