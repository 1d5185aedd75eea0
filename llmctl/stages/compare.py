"""Compare: what runs differ in, and their figures and curves together, as JSON values."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from llmctl.config import flat
from llmctl.errors import UsageError
from llmctl.stages.status import run_line
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.metrics import glance
from llmctl.workspace.runs import METRICS

SCHEMA_VERSION = 1
"""The version of the document that ``llmctl status --compare … --json`` prints."""
MACHINE = ("device", "precision", "compiled", "threads", "cpu")
"""What a run's summary says of where it was trained."""


def compare(workspace: Workspace, names: Sequence[str]) -> dict[str, Any]:
    """Two runs or more beside one another.

    Raises UsageError for fewer, or one twice, and InputError for a name that no run has.
    """
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(f"--compare names {name} twice; name different runs")
    if len(names) < 2:
        raise UsageError(
            f"--compare takes two runs or more: llmctl status --compare {' '.join(names)} OTHER"
        )
    runs = [workspace.get("run", name) for name in names]
    glances = [glance(run.folder / METRICS) for run in runs]
    # What was recorded, in the order of its steps.
    logs = [sorted([*g.train, *g.validations], key=itemgetter("step")) for g in glances]
    tokens_known = all(map(_knows_tokens, logs))
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            _figures(run_line(run, seen), run.manifest.summary, log)
            for run, seen, log in zip(runs, glances, logs, strict=True)
        ],
        "differences": differences({run.manifest.name: described(run) for run in runs}),
        "x": "tokens" if tokens_known else "steps",
        "curves": [
            {
                "name": run.manifest.name,
                "train": curve(log, "train", tokens=tokens_known),
                "validation": curve(log, "validation", tokens=tokens_known),
            }
            for run, log in zip(runs, logs, strict=True)
        ],
        "caution": _caution(runs),
    }


def described(run: Artefact) -> dict[str, Any]:
    """All that a run was made by, by dotted names: its configuration, inputs and machine."""
    manifest = run.manifest
    # Not what a budget was free to choose: what it chose is there.
    config = {key: value for key, value in manifest.config.items() if key != "chosen"}
    return {
        "stage": manifest.stage,
        **flat({"seed": manifest.seed, **config}),
        # Behind the configuration, whose ``data`` and ``model`` are tables.
        **{f"input.{r.role}": f"{r.name} {r.digest[:12]}" for r in manifest.inputs},
        **{f"machine.{k}": manifest.summary[k] for k in MACHINE if k in manifest.summary},
        "machine.torch": manifest.torch_version,
    }


def differences(described: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields that not all have with one value, each with the values of those that have it.

    >>> differences({"a": {"lr": 1, "seed": 0}, "b": {"lr": 2, "seed": 0}})
    [{'field': 'lr', 'values': {'a': 1, 'b': 2}}]
    """
    fields = dict.fromkeys(field for values in described.values() for field in values)
    rows = []
    for field in fields:
        present = {name: values[field] for name, values in described.items() if field in values}
        first = next(iter(present.values()))
        if len(present) < len(described) or any(value != first for value in present.values()):
            rows.append({"field": field, "values": present})
    return rows


def curve(log: Sequence[Mapping[str, Any]], kind: str, *, tokens: bool) -> list[list[float]]:
    """The losses of a kind of records, each with the tokens or steps that it was measured after.

    Between two records that tell tokens, as a validation between two logged steps, their number is
    taken to rise evenly.
    """
    known = [(0, 0)] + [(r["step"], r["tokens"]) for r in log if _trained(r) and "tokens" in r]
    points = []
    for record in log:
        loss = record.get("loss")
        if record.get("kind") == kind and loss is not None and math.isfinite(loss):
            step = record["step"]
            points.append([_between(known, step) if tokens else step, loss])
    return points


def _between(known: Sequence[tuple[int, int]], step: int) -> float:
    place = bisect_left(known, (step, 0))
    if place == len(known):
        return known[-1][1]
    (before, low), (after, high) = known[max(place - 1, 0)], known[place]
    return low + (high - low) * (step - before) / max(after - before, 1)


def _trained(record: Mapping[str, Any]) -> bool:
    return record.get("kind") == "train"


def _knows_tokens(log: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a log tells tokens wherever it can; an empty one says nothing against it."""
    trained = [record for record in log if _trained(record)]
    return not log or (bool(trained) and all("tokens" in record for record in trained))


def _figures(
    line: Mapping[str, Any], summary: Mapping[str, Any], log: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    looks = [record for record in log if record.get("kind") == "validation"]
    losses = [(r["loss"], r["step"]) for r in looks if _finite(r.get("loss"))]
    best = min(losses, default=(None, None))
    told = [record["tokens"] for record in log if _trained(record) and "tokens" in record]
    spent = {
        "tokens": summary.get("tokens", told[-1] if told else None),
        "seconds": summary.get("seconds", line["elapsed_seconds"]),
    }
    last = dict(looks[-1]) if looks else {}
    return {
        **{key: line[key] for key in ("name", "stage", "state", "step", "total_steps")},
        **spent,
        "parameters": line["parameters"],
        "tokens_per_second": _speed(log) or line["tokens_per_second"],
        "train_loss": line["loss"],
        "validation_loss": last.get("loss"),
        "best_validation_loss": best[0],
        "best_step": best[1],
        "validation": {k: v for k, v in last.items() if k not in ("kind", "step", "loss")},
    }


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _speed(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens a second over all of the log but its first record, in which kernels are made."""
    records = [r for r in log if _trained(r) and r.get("tokens_per_second") and "tokens" in r]
    tokens, seconds = 0, 0.0
    for before, after in itertools.pairwise(records):
        tokens += after["tokens"] - before["tokens"]
        seconds += (after["tokens"] - before["tokens"]) / after["tokens_per_second"]
    return tokens / seconds if seconds > 0 else None


def _caution(runs: Sequence[Artefact]) -> str | None:
    """Why the losses may not be comparable."""
    kinds = {_objective(run) for run in runs}
    if len(kinds) > 1:
        return f"these are losses of different things: {', '.join(sorted(kinds))}"
    texts = {
        record.digest
        for run in runs
        for record in run.manifest.inputs
        if record.role in ("shards", "data")
    }
    if len(texts) > 1:
        return "these were trained and validated on different texts, or with different tokens"
    return None


def _objective(run: Artefact) -> str:
    config = run.manifest.config
    if run.manifest.stage == "finetune":
        return str(config.get("task"))
    return "masked tokens" if "mask_rate" in config.get("objective", {}) else "next tokens"
