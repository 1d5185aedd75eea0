"""Finetune a regression: texts, or pairs of them, to numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.data.tables.labelled import Example, read_examples
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.formats.columns import labelled_record
from llmctl.formats.description import COLUMNS
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.regress import Regressor
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.batches import ExampleBatch
from llmctl.tasks.examples import ExamplesData, ExamplesTask
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.training.batches import LossParts, SumAndCount
from llmctl.training.config import TrainingConfig

LARGEST_NUMBER = 1e18
"""The largest number, up or down: its square must stay within single precision."""


class RegressConfig(FinetuneConfig):
    """Everything that decides the finetuning of a regression."""

    task: Literal["regress"] = "regress"
    """What is learned."""
    data: ExamplesData = ExamplesData()
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the body, where the architecture has any, and before the output layer."""
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, warmup=0.1, schedule="linear"
    )


class RegressTask(ExamplesTask):
    """Examples with numbers as batches, and a regression to train on them.

    It learns numbers of mean 0 and variance 1, as its weights are of that size, and the folder's
    output layer gives those of the data. A decoder's has no bias in transformers, so there the mean
    stays in them.
    """

    config: RegressConfig
    config_type = RegressConfig

    def _read(self, reporter: Reporter, reading: ReadOptions) -> list[Example]:
        return numbered(self.data, list(self._rows(reading)), reporter)

    def _rows(self, reading: ReadOptions) -> Any:
        return read_examples(self.data, self._columns, reading=reading)

    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, float]:
        values = np.asarray([float(example.label or "") for example in examples])
        self.smallest, self.largest = float(values.min()), float(values.max())
        if self.smallest == self.largest:
            raise InputError(
                f"{self.data} has one number only ({self.smallest:g}), so there is nothing to "
                "learn; check --label-column"
            )
        self.center = 0.0 if self._causal else float(values.mean())
        self.scale = float(np.sqrt(np.square(values - self.center).mean()))
        return {
            example.label or "": (value - self.center) / self.scale
            for example, value in zip(examples, values.tolist(), strict=True)
        }

    @property
    def introduction(self) -> str:
        return (
            f"{self.train_examples} examples to train on, {self.held_out_examples} held out; "
            f"numbers from {self.smallest:g} to {self.largest:g}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {"numbers": [self.smallest, self.largest], COLUMNS: labelled_record(self._columns)}

    def network(self) -> Regressor:
        dropout = self.config.dropout
        return self.base.with_new_layer(
            lambda body: Regressor(body, dropout=dropout), dropout, scratch=self.scratch
        )

    def loss(self, model: Regressor, batch: ExampleBatch) -> LossParts:
        """The squared error, in variances of the data; the mean error in its own units."""
        given_B = model(*batch.inputs)[:, 0].float()
        error_B = given_B - batch.labels_B.to(given_B.dtype)
        count = len(error_B)
        return LossParts(
            {"classification_loss": SumAndCount(error_B.square().sum(), count)},
            {"mean_error": SumAndCount(self.scale * error_B.detach().abs().sum(), count)},
        )

    def write(self, folder: Path, model: nn.Module) -> None:
        extra = {
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "problem_type": "regression",
            **self.folder_fields,
        }
        write_model_folder(folder, self._in_units(model), self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return self.base.spec.export_head("regress", self._in_units(model))

    @torch.no_grad()
    def _in_units(self, model: nn.Module) -> Regressor:
        """The model with an output layer that gives numbers as the data has them."""
        assert isinstance(model, Regressor)
        scaled = copy.copy(model)
        scaled._modules = {**model._modules, "output": copy.deepcopy(model.output)}
        scaled.output.weight.mul_(self.scale)
        if scaled.output.bias is not None:
            scaled.output.bias.mul_(self.scale).add_(self.center)
        return scaled


def numbered(path: Path, examples: Sequence[Example], reporter: Reporter) -> list[Example]:
    """The examples that have a text. Raises InputError if there are none, or one has no number."""
    blank = [example for example in examples if not example.text]
    if blank:
        reporter.note(f"left out {len(blank)} rows without text (the first: {blank[0].source})")
    kept = [example for example in examples if example.text]
    if not kept:
        raise InputError(f"{path} has no texts with numbers")
    for example in kept:
        try:
            number = float(example.label or "")
        except ValueError:
            number = math.nan
        if math.isfinite(number) and abs(number) > LARGEST_NUMBER:
            raise InputError(
                f"{example.source}: {example.label} is beyond {LARGEST_NUMBER:g}, the largest "
                "number that is learned; give it in another unit"
            )
        if not math.isfinite(number):
            raise InputError(
                f"{example.source}: {example.label!r} is no number; a regression learns from "
                "numbers: check --label-column, or take --task classify"
            )
    return kept
