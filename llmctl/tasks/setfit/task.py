"""Learn a classifier from a few labels: the body is trained to bring texts of one class together,
then a logistic regression on its vectors tells the classes (SetFit, Tunstall et al. 2022)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from llmctl.data.random import key_of, permute
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.labelled_files import read_labelled
from llmctl.data.text.decoding import ReadOptions
from llmctl.formats.columns import labelled_record
from llmctl.formats.description import COLUMNS
from llmctl.formats.sentence_transformers.folder import DENSE_FOLDER, SentenceTransformers
from llmctl.inference.embedding import embed_ids
from llmctl.models.heads.embed import Embedder, Pooling
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.embed.texts import new_embedder, pooling_for
from llmctl.tasks.examples import (
    EVAL_BATCH_SIZE,
    ExamplesData,
    ExamplesTask,
    class_labels,
    counted_labels,
)
from llmctl.tasks.finetuning import FinetuneConfig
from llmctl.tasks.setfit.loss import SetfitLoss, collate
from llmctl.training.batches import TensorBatch
from llmctl.training.config import TrainingConfig
from llmctl.training.optim.logistic import fit_logistic


class FewLabelsData(ExamplesData):
    """Which columns hold what, and what is held out."""

    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the examples, chosen by their text's hash, for early stopping: none, as there are
    few."""


class SetfitConfig(FinetuneConfig):
    """Everything that decides a classifier from a few labels."""

    task: Literal["setfit"] = "setfit"
    """What is learned."""
    pooling: Pooling | Literal["auto"] = "auto"
    """What a text's vector is: the mean or max of its tokens' hidden states, that of the first
    (cls) or of the last. auto: as the model has it, else the mean."""
    strength: float = Field(1.0, gt=0)
    """With what strength the logistic regression follows the examples: the inverse of its
    penalty's weight, scikit-learn's C."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the body, where the architecture has any."""
    data: FewLabelsData = FewLabelsData()
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=32, warmup=0.1, schedule="linear"
    )


class SetfitTask(ExamplesTask):
    """Labelled examples as batches of several classes, and a body to train on them."""

    config: SetfitConfig
    config_type = SetfitConfig
    peft_task: ClassVar[str] = "FEATURE_EXTRACTION"
    beside_adapter = (DENSE_FOLDER,)

    def _read(self, reporter: Reporter, reading: ReadOptions) -> list[Example]:
        return read_labelled(self.data, self._columns, reporter, reading)

    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, float]:
        self._counts = Counter(example.label or "" for example in examples)
        self.labels = class_labels(self._counts)
        return {label: number for number, label in enumerate(self.labels)}

    @property
    def introduction(self) -> str:
        shown = counted_labels(self.labels, self._counts)
        return f"{self.train_examples} examples to train on; labels: {shown}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"classes": len(self.labels), COLUMNS: labelled_record(self._columns)}

    @property
    def pooling(self) -> Pooling:
        """How a text's vector is made."""
        return pooling_for(self.base, self.config.pooling)

    @property
    def new_parts(self) -> tuple[str, ...]:
        return ()

    @property
    def loss(self) -> SetfitLoss:
        """What compares the vectors of a batch."""
        return SetfitLoss()

    def network(self) -> Embedder:
        dropout = self.config.dropout
        return new_embedder(self.base, self.pooling, dropout=dropout, scratch=self.scratch)

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: the classes in turn, each in random order."""
        epoch, place = divmod(number, self.batches_per_epoch)
        rows = self._in_turn(epoch)
        size = self.config.training.batch_size
        return collate(
            [self._train[row] for row in rows[place * size : (place + 1) * size]], self._pad
        )

    def _in_turn(self, epoch: int) -> NDArray[np.int64]:
        """The numbers of all examples, one of each class in turn while there are some."""
        count = len(self._train)
        order = permute(key_of(self.config.seed, "order", epoch), count, np.arange(count))
        of_class: dict[int, list[int]] = {}
        for row in order.tolist():
            of_class.setdefault(int(self._train[row].label), []).append(row)
        rounds = zip_longest(*of_class.values())
        return np.array([row for each in rounds for row in each if row is not None])

    def validation_batches(self) -> list[TensorBatch]:
        held = self._held_out
        parts = [held[i : i + EVAL_BATCH_SIZE] for i in range(0, len(held), EVAL_BATCH_SIZE)]
        return [collate(part, self._pad) for part in parts]

    def write(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, Embedder)
        weight, bias = self._regression(model)
        extra = {
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            **self.folder_fields,
        }
        SentenceTransformers().save(folder, model, self._tokenizer, extra, dense=(weight, bias))

    def _regression(self, model: Embedder) -> tuple[Tensor, Tensor]:
        """The layer that tells the classes by the vectors of all examples."""
        texts = [*self._train, *self._held_out]
        vectors = embed_ids(model, [example.ids for example in texts], self._pad)
        labels = torch.tensor([int(example.label) for example in texts])
        return fit_logistic(
            torch.from_numpy(vectors), labels, len(self.labels), strength=self.config.strength
        )

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return {}
