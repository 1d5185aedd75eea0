"""Finetune a classifier: labelled texts to their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import read_labelled
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.formats.columns import labelled_record
from llmctl.formats.description import COLUMNS
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.classify import Classifier
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.batches import ExampleBatch
from llmctl.tasks.classify.loss import classification_loss
from llmctl.tasks.examples import ExamplesData, ExamplesTask, labels_in_order
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.training.batches import LossParts
from llmctl.training.config import TrainingConfig


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
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, warmup=0.1, schedule="linear"
    )


class ClassifyTask(ExamplesTask):
    """Labelled examples as batches, and a classifier to train on them."""

    config: ClassifyConfig
    config_type = ClassifyConfig

    def _read(self, reporter: Reporter, reading: ReadOptions) -> list[Example]:
        return read_labelled(self.data, self._columns, reporter, reading)

    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, float]:
        self._counts = Counter(example.label or "" for example in examples)
        self.labels = labels_in_order(self._counts)
        self._class_weights: Tensor | None = None
        if self.config.class_weights == "balanced":
            counts = [self._counts[label] for label in self.labels]
            weights = [sum(counts) / (len(counts) * count) for count in counts]
            self._class_weights = torch.tensor(weights)
        if len(self.labels) < 2:
            raise InputError(
                f"the label column has one class only ({self.labels[0]!r}); a classifier needs "
                "two or more: check --label-column"
            )
        return {label: number for number, label in enumerate(self.labels)}

    @property
    def introduction(self) -> str:
        shown = ", ".join(f"{label} {self._counts[label]}" for label in self.labels[:8])
        more = f", … ({len(self.labels)} classes)" if len(self.labels) > 8 else ""
        return (
            f"{self.train_examples} examples to train on, {self.held_out_examples} held out; "
            f"labels: {shown}{more}"
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
            "problem_type": "single_label_classification",
            **self.folder_fields,
        }
        write_model_folder(folder, model, self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        assert isinstance(model, Classifier)
        return self.base.spec.export_head("classify", model)
