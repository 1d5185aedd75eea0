"""What a model was trained on: read again for the baselines, and compared with what it is measured
on, as figures of texts that a model has learned say little of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.data.tables.labelled import Columns, Example
from llmctl.data.tables.labelled_files import (
    LabelledColumns,
    is_held_out,
    read_labelled,
    resolve_labelled,
)
from llmctl.data.text.documents import Corpus
from llmctl.formats.columns import Finetuned
from llmctl.reporting.reporter import Reporter
from llmctl.workspace.artefacts import Artefact, Workspace
from llmctl.workspace.files import sha256_file
from llmctl.workspace.manifests import InputRecord


@dataclass(frozen=True)
class TrainingExamples:
    """The labelled texts of a finetuning."""

    trained: list[Example]
    held_out: list[Example]
    """By these the best weights were chosen."""


def training_examples(model: Finetuned, notes: list[str]) -> TrainingExamples | None:
    """What a classifier was trained on; None, with a note, where that can't be told."""
    path = training_file(model, notes)
    if path is None:
        return None
    options = model.options
    columns: Columns | None = model.labelled
    reading = model.read_config.read_options()
    if columns is None or columns.label is None:
        column_options = {
            key: options[key] for key in LabelledColumns.model_fields if key in options
        }
        columns = resolve_labelled(path, LabelledColumns(**column_options), reading)
    examples = read_labelled(path, columns, Reporter(), reading)
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[is_held_out(example, options["validation"])].append(example)
    return TrainingExamples(*parts)


def training_file(model: Finetuned, notes: list[str]) -> Path | None:
    """The file that a model was finetuned on; None, with a note, where that can't be told."""
    record = _record(model.run)
    if record is None:
        notes.append("baselines left out: a model folder does not say what it was trained on")
        return None
    path = Path(record.name)
    if not path.is_file() or sha256_file(path) != record.digest:
        notes.append(f"baselines left out: the training data {path} is gone or has changed")
        return None
    return path


def is_training_file(model: Finetuned, path: Path) -> bool:
    """Whether a file has the very bytes of the one that a model was finetuned on."""
    record = _record(model.run)
    return record is not None and path.is_file() and sha256_file(path) == record.digest


def seen_in_training(model: Finetuned, path: Path) -> list[str]:
    """A sentence to say so where a file is the one that a model was finetuned on."""
    if not is_training_file(model, path):
        return []
    return [
        f"{path} is the very file that {model.name} was trained on: what it says of these texts "
        "tells little of how it does on others; measure on a file of its own"
    ]


def pretrained_on(workspace: Workspace, model: Finetuned, path: Path) -> list[str]:
    """A sentence to say so where a text is all that a language model's shards were made of."""
    if model.run is None or not path.is_file():
        return []
    lineage = workspace.lineage(model.run.manifest)
    corpora = {record.digest for _, record, _ in lineage if record.role == "corpus"}
    if not corpora or Corpus([str(path)]).digest() not in corpora:
        return []
    return [
        f"{path} is the very text that {model.name} was pretrained on: the figures say little of "
        "other text; leave out --data to measure on the part that was held out"
    ]


def seen_examples(
    model: Finetuned, examples: Sequence[Example], data: TrainingExamples
) -> tuple[dict[str, Any], list[str]]:
    """How many of some examples a model was trained on, and by how many its weights were chosen;
    and a sentence to say so."""
    texts = [_key(example) for example in examples]
    trained, held_out = (_keys(part) for part in (data.trained, data.held_out))
    seen = {
        "trained": sum(text in trained for text in texts),
        "held_out": sum(text in held_out and text not in trained for text in texts),
    }
    if not any(seen.values()):
        return seen, []
    chosen = (
        f", and by {seen['held_out']:,} more its best weights were chosen"
        if seen["held_out"]
        else ""
    )
    return seen, [
        f"{model.name} was trained on {seen['trained']:,} of these {len(texts):,} texts{chosen}: "
        "figures on texts that it has seen say little of others; measure on a file of its own"
    ]


def _key(example: Example) -> tuple[str, str | None]:
    return example.text, example.text_pair


def _keys(examples: Iterable[Example]) -> set[tuple[str, str | None]]:
    return {_key(example) for example in examples}


def _record(run: Artefact | None) -> InputRecord | None:
    """The file that a run was finetuned on."""
    inputs = run.manifest.inputs if run is not None else []
    return next((record for record in inputs if record.role == "data"), None)
