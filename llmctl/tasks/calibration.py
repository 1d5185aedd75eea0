"""The rows that a model's parts are judged by, with the loss that it was trained with.

A language model has text, a masked one text of which tokens are hidden; what was finetuned has a
file of labelled examples like the one of its training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.compression.importance import CalibrationRows, next_token_loss
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.tables.tagged import TaggedColumns
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.columns import labelled_columns
from llmctl.formats.description import MULTI_LABEL, NEXT_TOKEN_KINDS, ORDINAL, PROBLEM
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.reporting.reporter import Reporter
from llmctl.tasks import TASKS
from llmctl.tasks.masked_lm.config import MaskedLMConfig
from llmctl.tasks.masked_lm.hidden import hidden_rows, hidden_token_loss
from llmctl.tasks.opened import OpenedModel

ON_TEXT = (*NEXT_TOKEN_KINDS, "masked_lm")
"""What models do whose loss is of plain text."""
ON_EXAMPLES = ("classify", "tag", "embed")
"""What models do whose loss is of labelled examples."""
COMPARED_AT_ONCE = 16
"""Examples of a row where a loss compares them with one another."""
NOT_THE_LOSS = {
    "task", "method", "freeze_layers", "last_layers", "lora", "prompt", "prefix", "patience",
    "training", "data", "seed", "dropout",
}  # fmt: skip
"""Fields of a finetuning's configuration that say nothing of what was minimised, or are told
anew."""


def check_has_rows(model: OpenedModel) -> None:
    """Raises InputError for a model of whose loss no rows are made."""
    if model.kind not in (*ON_TEXT, *ON_EXAMPLES):
        raise InputError(
            f"--importance gradient is by the loss that a model was trained with, and of that of "
            f"{model.name}, {model.described}, none is made here; leave it out"
        )


def text_rows(model: OpenedModel, windows_NT: Tensor, seed: int) -> CalibrationRows:
    """Rows of plain text, for a model that tells next or hidden tokens."""
    if model.kind in NEXT_TOKEN_KINDS:
        return CalibrationRows(list(windows_NT), next_token_loss)
    objective = model.run.manifest.config.get("objective", {}) if model.run else {}
    config = MaskedLMConfig(
        **{name: objective[name] for name in MaskedLMConfig.model_fields if name in objective}
    )
    return CalibrationRows(hidden_rows(model.folder, windows_NT, config, seed), hidden_token_loss)


def example_rows(
    model: OpenedModel,
    data: Path,
    count: int,
    columns: Mapping[str, str | None],
    reporter: Reporter,
) -> CalibrationRows:
    """Rows of a file of examples like that of the training, in random order, ``count`` at most.

    columns: options that name columns. Raises InputError for labels that the model doesn't know.
    """
    compared = model.kind == "embed"
    size = COMPARED_AT_ONCE if compared else 1
    task = _task_on(model, data, size, columns, reporter)
    renumber = (lambda batch: batch) if compared else _renumbering(task, model.folder)
    several = max(1, min(count // size, task.batches_per_epoch))
    rows = [renumber(task.batch(number)) for number in range(several)]
    loss = task.loss
    return CalibrationRows(rows, lambda network, batch: loss(network, batch).total)


def _task_on(
    model: OpenedModel,
    data: Path,
    batch_size: int,
    columns: Mapping[str, str | None],
    reporter: Reporter,
) -> Any:
    """The finetuning that made the model, on another file, of which nothing is held out."""
    kind: Any = TASKS[model.kind].task()
    trained = model.run.manifest.config if model.run else {}
    fields = kind.config_type.model_fields
    kept = {key: trained[key] for key in trained if key in fields and key not in NOT_THE_LOSS}
    if model.kind == "classify":
        said = model.folder.fields
        kept["multi_label"] = said.get(PROBLEM) == MULTI_LABEL
        kept["ordinal"] = said.get(ORDINAL) is True
        if kept["ordinal"]:
            kept["order"] = model.folder.labels
    layer = {
        **kept,
        "data": {**_columns(model, data, columns, reporter), "validation": 0.0},
        "training": {"batch_size": batch_size},
    }
    config = kind.resolve(layer)
    made: Any = kind.variant(config)
    return made(data, model.folder, config, start=model.name, reporter=reporter)


def _columns(
    model: OpenedModel, data: Path, asked: Mapping[str, str | None], reporter: Reporter
) -> dict[str, Any]:
    """Which columns hold what: as asked, else as in the training."""
    given = {name: value for name, value in asked.items() if value is not None}
    if model.kind == "classify":
        reading = model.read_config
        found = labelled_columns(
            model,
            data,
            LabelledColumns(**given),
            need_label=True,
            reading=reading.read_options(reporter.note),
            note=reporter.note,
        )
        return {
            **reading.model_dump(),
            "text_column": ",".join(found.text),
            "text_pair_column": found.text_pair,
            "label_column": found.label,
        }
    kind: Any = TaggedColumns if model.kind == "tag" else TASKS["embed"].task().config_type
    table = kind if model.kind == "tag" else kind.model_fields["data"].annotation
    kept = {name: value for name, value in model.options.items() if name in table.model_fields}
    return {**kept, **{name: value for name, value in given.items() if name in table.model_fields}}


def _renumbering(task: Any, folder: Pretrained) -> Callable[[Any], Any]:
    """What gives the labels of a batch the numbers that they have with a model."""
    known: Sequence[str] = folder.labels or []
    if unknown := sorted({*task.labels} - {*known}):
        raise InputError(
            f"{task.data} has labels that the model does not know ({', '.join(unknown[:5])}); it "
            f"knows {', '.join(known[:10])}"
        )
    places = torch.tensor([known.index(label) for label in task.labels])
    task.labels = list(known)

    def renumber(batch: Any) -> Any:
        if hasattr(batch, "labels_BT"):
            labels_BT = batch.labels_BT
            told = labels_BT != IGNORED
            return replace(
                batch, labels_BT=torch.where(told, places[labels_BT.clamp(min=0)], labels_BT)
            )
        labels = batch.labels_B
        if labels.dim() > 1:  # a yes or no to each label
            all_BC = labels.new_zeros(len(labels), len(known))
            all_BC[:, places] = labels
            return replace(batch, labels_B=all_BC)
        return replace(batch, labels_B=places[labels])

    return renumber
