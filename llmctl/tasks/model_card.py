"""The card of a model: README.md in a run's model folder, as the Hugging Face Hub shows it
(Mitchell et al. 2019, "Model cards for model reporting").

It is written from manifests and reports of the workspace alone, so it claims nothing that none of
them holds, and says what nobody has measured. It belongs to no digest: it is written anew when a
report comes, and the model stays the one it was.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import InputError
from llmctl.evaluation.report import Report
from llmctl.formats.description import MODEL_KINDS, TASK
from llmctl.parsing import read_json_object
from llmctl.reporting import markdown
from llmctl.reporting.report import ReportPart
from llmctl.reporting.units import duration, figure
from llmctl.tasks.kept_reports import REPORT, parts_of, read_report, way_of
from llmctl.tasks.learned import said_of, weak_start
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import write_atomic
from llmctl.workspace.manifests import InputRecord, Manifest

CARD = "README.md"
PIPELINES = {
    "masked_lm": "fill-mask",
    "gpt_bert": "text-generation",
    "causal_lm": "text-generation",
    "ngram": "text-generation",
    "classify": "text-classification",
    "cloze": "text-classification",
    "regress": "text-classification",
    "tag": "token-classification",
    "embed": "sentence-similarity",
}
"""What the Hub calls that which models do."""
UNMEASURED = (
    "No report in the workspace measures this model on held-out data, so nothing is claimed here "
    "of how good it is. `llmctl eval` makes such a report, and this card is written anew with it."
)
NO_BIAS = (
    "No report in the workspace measures bias, so nothing is known of it here. What stands in the "
    "training text, its stereotypes and gaps too, a model may repeat."
)
CHOSEN = (
    "The best weights were chosen by these figures, so they flatter the model: see the results for "
    "data that had no part in it."
)


@dataclass(frozen=True)
class Measured:
    """A report about a model."""

    manifest: Manifest
    report: Report
    parts: Sequence[ReportPart]


def write_card(
    workspace: Workspace, run: Artefact, note: Callable[[str], None] = lambda text: None
) -> None:
    """Write the card of a finished run. One that came with an imported model stays; where the card
    can't be written, ``note`` is told so, as the model is whole without it."""
    folder = run.folder / "model"
    own = f"model/{CARD}" not in run.manifest.files
    if not (own and run.finished and folder.is_dir()):
        return
    path = folder / CARD
    try:
        text = card_of(workspace, run)
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            write_atomic(path, text)
    except (OSError, InputError) as error:
        note(f"the model's card is not written: {error}")


def card_of(workspace: Workspace, run: Artefact) -> str:
    """The card's text."""
    manifest = run.manifest
    fields = _fields_of(run)
    measured = list(_reports(workspace, manifest))
    bias = [one for one in measured if way_of(one.report).measures_bias]
    results = [one for one in measured if one not in bias]
    sections = {
        "Training": _training(manifest),
        "Data": _data(workspace, manifest),
        "Results": _results(results) or UNMEASURED,
        "Bias": _results(bias) or NO_BIAS,
        "Limits": _limits(workspace, run, results),
        "Lineage": _lineage(workspace, manifest),
        "Commands": _commands(workspace, manifest),
    }
    text = [
        _front(manifest, fields, measured),
        f"# {markdown.plain(manifest.name)}",
        _what(run, fields),
    ]
    for heading, body in sections.items():
        text += [f"## {heading}", body]
    text.append("This card is written by llmctl from the workspace's manifests and reports alone.")
    return "\n\n".join(text) + "\n"


def _fields_of(run: Artefact) -> dict[str, Any]:
    with contextlib.suppress(InputError):
        return read_json_object(run.folder / "model" / "config.json")
    return {}


def _kind(manifest: Manifest, fields: dict[str, Any]) -> str:
    if manifest.config.get("arch") == "ngram":
        return "ngram"
    kind = fields.get(TASK) or manifest.summary.get("task") or ""
    return str(kind)


def _reports(workspace: Workspace, manifest: Manifest) -> Iterator[Measured]:
    """The reports that measure these very weights, the oldest first."""
    for artefact in workspace.list("report"):
        models = [record for record in artefact.manifest.inputs if record.role == "model"]
        own = [
            record
            for record in models
            if record.artefact == ("run", manifest.name) and record.digest == manifest.digest
        ]
        if not own:
            continue
        path = artefact.folder / REPORT
        with contextlib.suppress(InputError, KeyError):  # damaged, or of a newer version
            report = read_report(path)
            way_of(report)
            yield Measured(artefact.manifest, report, parts_of(report, path))


def _front(manifest: Manifest, fields: dict[str, Any], measured: Sequence[Measured]) -> str:
    """What the Hub reads: YAML, whose values are written as JSON, which YAML has in it."""
    kind = _kind(manifest, fields)
    pipeline = PIPELINES.get(kind)
    front: dict[str, Any] = {}
    if fields.get("architectures"):
        front["library_name"] = "transformers"
    if pipeline is not None:
        front["pipeline_tag"] = pipeline
    front["tags"] = ["llmctl", *([str(arch)] if (arch := _architecture(manifest)) else [])]
    results = [
        {
            "task": {"type": pipeline or "other"},
            "dataset": {"name": Path(one.report.data).name, "type": one.report.task},
            "metrics": [
                {"type": name, "value": value}
                for name, value in one.report.summary.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            ],
        }
        for one in measured
    ]
    results = [one for one in results if one["metrics"]]
    if results:
        front["model-index"] = [{"name": manifest.name, "results": results}]
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())
    return "\n".join(["---", *lines, "---"])


def _architecture(manifest: Manifest) -> str | None:
    arch = manifest.config.get("arch") or manifest.summary.get("arch")
    return str(arch) if arch else None


def _what(run: Artefact, fields: dict[str, Any]) -> str:
    manifest = run.manifest
    kind = _kind(manifest, fields)
    said = MODEL_KINDS.get(kind, "a model")
    arch = _architecture(manifest) or fields.get("model_type")
    facts = [f"{said[0].upper()}{said[1:]}"]
    if arch:
        facts.append(f"architecture {arch}")
    if parameters := manifest.summary.get("parameters"):
        facts.append(f"{parameters:,} parameters")
    shape = manifest.config.get("model") or {}
    if {"num_layers", "hidden_size"} <= shape.keys():
        facts.append(f"{shape['num_layers']} layers × {shape['hidden_size']}")
    licence = "No licence is recorded for it."
    return f"{markdown.plain(', '.join(facts))}. {licence}"


def _training(manifest: Manifest) -> str:
    summary, config = manifest.summary, manifest.config
    training = config.get("training") or {}
    rows = [
        ("finished", (manifest.finished or "")[:19].replace("T", " ") + " UTC"),
        ("llmctl", manifest.llmctl_version),
        ("PyTorch", manifest.torch_version),
        ("seed", manifest.seed),
        ("task", config.get("task")),
        ("starts from", config.get("from")),
        ("method", config.get("method")),
        *((name.replace("_", " "), training.get(name)) for name in TRAINING_FIELDS),
        *((name.replace("_", " "), summary.get(name)) for name in SUMMARY_FIELDS),
    ]
    shown = [(name, _shown(value)) for name, value in rows if value is not None]
    if seconds := summary.get("seconds"):
        shown.append(("time", duration(seconds)))
    parts = [markdown.table(["", ""], shown)]
    validation = summary.get("validation") or {}
    figures = {k: v for k, v in validation.items() if isinstance(v, int | float)}
    if figures:
        rows_of_figures = [(name, figure(value, ".4f")) for name, value in figures.items()]
        parts.append(
            "On the part that was held out while it was trained:\n\n"
            + markdown.table(["figure", "value"], rows_of_figures)
        )
        if summary.get("best_step"):
            parts.append(CHOSEN)
    if (said := said_of(manifest)) is not None:
        parts.append(markdown.plain(said[0].upper() + said[1:]) + ".")
    return "\n\n".join(parts)


TRAINING_FIELDS = ("optimiser", "learning_rate", "batch_size", "precision")
SUMMARY_FIELDS = (
    "steps", "tokens", "epochs", "train_examples", "validation_examples", "trainable_parameters",
    "device", "world_size",
)  # fmt: skip


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _named(record: InputRecord) -> str:
    """An artefact's name, or a file's without the folders above it, which are one machine's."""
    return record.name if record.artefact else " ".join(Path(n).name for n in record.name.split())


def _data(workspace: Workspace, manifest: Manifest) -> str:
    rows = []
    for _, record, parent in workspace.lineage(manifest):
        if record.role in ("model", "tokenizer", "source"):
            continue
        summary = parent.summary if parent is not None else {}
        size = ", ".join(
            f"{summary[name]:,} {name}" for name in ("documents", "tokens") if summary.get(name)
        )
        row = (record.role, _named(record), size, record.digest[:12])
        if row not in rows:
            rows.append(row)
    if not rows:
        return "The manifests name no data: the model was not trained in this workspace."
    return markdown.table(["used as", "name", "size", "digest"], rows)


def _results(measured: Sequence[Measured]) -> str:
    parts = []
    for one in measured:
        day = (one.manifest.finished or "")[:10]
        parts.append(
            f"### {markdown.plain(one.manifest.name)}\n\n"
            f"Measured on {markdown.code(Path(one.report.data).name)}, {day}:\n\n"
            f"{markdown.report(one.parts)}"
        )
    return "\n\n".join(parts)


def _limits(workspace: Workspace, run: Artefact, results: Sequence[Measured]) -> str:
    manifest = run.manifest
    lines = []
    shape = manifest.config.get("model") or {}
    if longest := shape.get("max_positions"):
        lines.append(f"It reads at most {longest:,} tokens of a text.")
    if (weak := weak_start(workspace, run)) is not None:
        lines.append(f"{markdown.plain(weak)}.")
    if results:
        lines.append(
            "The figures above are of those data sets; on text of another kind they may be worse."
        )
    else:
        lines.append("How well it does has not been measured: see above.")
    lines.append("What no report above tells has not been measured.")
    return "\n".join(f"- {line}" for line in lines)


def _lineage(workspace: Workspace, manifest: Manifest) -> str:
    lines = [f"- run/{markdown.plain(manifest.name)} ({manifest.digest[:12]})"]
    for depth, record, parent in workspace.lineage(manifest):
        gone = "" if parent is not None or record.artefact is None else ", no longer here"
        lines.append(
            f"{'  ' * depth}- {record.role}: {markdown.plain(_named(record))} "
            f"({record.digest[:12]}{gone})"
        )
    return "\n".join(lines)


def _commands(workspace: Workspace, manifest: Manifest) -> str:
    """The commands that made it, in the order in which they are to be given."""
    made: list[Manifest] = [manifest]
    for _, _, parent in workspace.lineage(manifest):
        if parent is not None and parent.reference not in [one.reference for one in made]:
            made.append(parent)
    lines = dict.fromkeys(
        shlex.join(one.command) for one in sorted(made, key=lambda one: one.created)
    )
    text = "\n".join(line.replace("\n", " ") for line in lines)
    return markdown.block(text, "bash")
