"""Finetune a classifier: labelled texts to their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import read_labelled
from llmctl.data.text.decoding import ReadOptions
from llmctl.formats.columns import labelled_record
from llmctl.formats.description import COLUMNS, PROBLEM
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.classify import Classifier
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.batches import ExampleBatch
from llmctl.tasks.classify.loss import classification_loss
from llmctl.tasks.examples import ExamplesData, ExamplesTask, class_labels, counted_labels
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.training.batches import LossParts
from llmctl.training.config import TrainingConfig


def _order(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


LabelOrder = Annotated[tuple[str, ...], BeforeValidator(_order)]
"""Labels from low to high: ``low,high``, or a list of them in a recipe."""


class ClassifyConfig(FinetuneConfig):
    """Everything that decides the finetuning of a classifier."""

    task: Literal["classify"] = "classify"
    """What is learned."""
    data: ExamplesData = ExamplesData()
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the body, where the architecture has any, and before the output layer."""
    class_weights: Literal["none", "balanced"] = "none"
    """How classes weigh in the loss. balanced: rare ones more, in inverse proportion to their
    frequency."""
    multi_label: bool = False
    """Whether a text has any number of labels, not one."""
    label_separator: str | None = Field(None, min_length=1)
    """With multi_label: what stands between a text's labels. Unset: the first of bar, semicolon and
    comma that is found; lists are read as they are."""
    ordinal: bool = False
    """Whether the classes are in an order: by their numbers, or as ``order`` has them."""
    order: LabelOrder = ()
    """With ordinal: the labels from low to high, low,middle,high. Unset: by their numbers."""
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, warmup=0.1, schedule="linear"
    )

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.multi_label and self.ordinal:
            raise ValueError(
                "--multi-label and --ordinal are two things that labels may be; give one of them"
            )
        if self.class_weights != "none" and (self.multi_label or self.ordinal):
            raise ValueError(
                "class_weights are for classes of which a text has one, in no order; leave it out"
            )
        if self.label_separator and not self.multi_label:
            raise ValueError("label_separator goes with --multi-label; leave it out")
        if self.order and not self.ordinal:
            raise ValueError("order goes with --ordinal; leave it out")
        if len({*self.order}) < len(self.order):
            raise ValueError("order names a label twice; name each once")
        return self


class ClassifyTask(ExamplesTask):
    """Labelled examples as batches, and a classifier to train on them."""

    config: ClassifyConfig
    config_type = ClassifyConfig

    @classmethod
    def variant(cls, config: Any) -> Any:
        """That of several labels, or of ordered ones."""
        from llmctl.tasks.classify.multilabel import MultiLabelTask
        from llmctl.tasks.classify.ordinal import OrdinalTask

        if config.multi_label:
            return MultiLabelTask
        return OrdinalTask if config.ordinal else cls

    def _read(self, reporter: Reporter, reading: ReadOptions) -> list[Example]:
        return read_labelled(self.data, self._columns, reporter, reading)

    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, float]:
        self._counts = Counter(example.label or "" for example in examples)
        self.labels = class_labels(self._counts)
        self._class_weights: Tensor | None = None
        if self.config.class_weights == "balanced":
            counts = [self._counts[label] for label in self.labels]
            weights = [sum(counts) / (len(counts) * count) for count in counts]
            self._class_weights = torch.tensor(weights)
        return {label: number for number, label in enumerate(self.labels)}

    @property
    def introduction(self) -> str:
        shown = counted_labels(self.labels, self._counts)
        return (
            f"{self.train_examples} examples to train on, {self.held_out_examples} held out; "
            f"labels: {shown}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {"classes": len(self.labels), COLUMNS: labelled_record(self._columns)}

    def network(self) -> Classifier:
        return self.base.new_classifier(
            len(self.labels), dropout=self.config.dropout, scratch=self.scratch
        )

    def loss(self, model: Classifier, batch: ExampleBatch) -> LossParts:
        return classification_loss(model, batch, self._class_weights)

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        # On few examples accuracy has ties, which the loss breaks.
        return {**values, "criterion": 1.0 - values["accuracy"] + 1e-3 * values["loss"]}

    def write(self, folder: Path, model: nn.Module) -> None:
        extra = {
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            **self._description(model),
            **self.folder_fields,
        }
        write_model_folder(folder, model, self._tokenizer, extra)

    def _description(self, model: nn.Module) -> dict[str, Any]:
        """What the folder says of the classes."""
        return {PROBLEM: "single_label_classification"}

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        assert isinstance(model, Classifier)
        return self.base.spec.export_head("classify", model)
