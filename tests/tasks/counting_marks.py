"""A task as one adds it: how many marks a text has, learned as a regression on [CLS].

The head gives one number, the loss is its squared error, and the mean of all texts is the baseline.
B texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llmctl.data.tables.labelled import Columns, Example
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.text.decoding import ReadOptions, text_lines
from llmctl.evaluation.report import MODEL, Figure, Report
from llmctl.formats.base import Pretrained
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.base import Head
from llmctl.models.spec import Backbone
from llmctl.models.weight_map import BOTH, Rename
from llmctl.reporting.report import ReportPart
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.entry import TaskEntry
from llmctl.tasks.evaluation import Evaluator
from llmctl.tasks.finetuning import FinetuneConfig, FinetuningTask
from llmctl.tasks.prediction import Predictor
from llmctl.training.batches import LossParts, SumAndCount, TensorBatch
from llmctl.training.config import TrainingConfig

HELD_OUT = 8
NAMES = (Rename("output", "counter", BOTH),)
"""What an architecture calls the head's tensors."""


def marks_of(text: str) -> int:
    return sum(not (c.isalnum() or c.isspace()) for c in text)


class Counter(nn.Module):
    """A body with one number on [CLS]."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body, self.output = body, nn.Linear(body.config.hidden_size, 1)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        hidden_BTD = self.body(ids_BT, torch.zeros_like(ids_BT), mask_BT)
        return self.output(hidden_BTD[:, 0])[:, 0]


class CounterHead(Head):
    kind, described = "count", "a counter of marks"
    network = Counter
    endings = ("ForCounting",)

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> Counter:
        return Counter(body)


@dataclass(frozen=True)
class CountBatch(TensorBatch):
    ids_BT: Tensor
    mask_BT: Tensor
    counts_B: Tensor

    @property
    def num_positions(self) -> int:
        return self.ids_BT.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"squared_error": len(self)}


def batch_of(base: Pretrained, texts: Sequence[str]) -> CountBatch:
    layout = base.tokenizer.for_encoder().layout
    rows = [[*layout.before, *base.tokenizer.encode(text), *layout.after] for text in texts]
    ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(row[: base.max_length]) for row in rows], True)
    lengths_B = np.array([min(len(row), base.max_length) for row in rows])
    mask_BT = torch.arange(ids_BT.shape[1]) < torch.from_numpy(lengths_B)[:, None]
    return CountBatch(lengths_B, ids_BT, mask_BT, torch.tensor([*map(marks_of, texts)]).float())


class CountConfig(FinetuneConfig):
    task: Literal["count"] = "count"
    data: LabelledColumns = LabelledColumns()
    training: TrainingConfig = TrainingConfig(epochs=4, batch_size=8)


class CountTask(FinetuningTask):
    config_type = CountConfig
    new_parts = ("output",)

    def __init__(
        self, data: Path, base: Pretrained, config: Any, *, start: str, reporter: Reporter
    ) -> None:
        super().__init__(data, base, config, start=start)
        texts = [line for line, _ in text_lines(data, ReadOptions())]
        self._held_out, self._train = texts[:HELD_OUT], texts[HELD_OUT:]
        self.train_examples, self.held_out_examples = len(self._train), HELD_OUT

    @staticmethod
    def peak_rate(base: Pretrained, method: str, *, scratch: bool) -> float:
        return 5e-3

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    def batch(self, number: int) -> CountBatch:
        size = self.config.training.batch_size
        begin = number % self.batches_per_epoch * size
        return batch_of(self.base, self._train[begin : begin + size])

    def validation_batches(self) -> list[CountBatch]:
        return [batch_of(self.base, self._held_out)]

    def network(self) -> Counter:
        return Counter(self.base.backbone(scratch=self.scratch))

    def loss(self, model: Counter, batch: CountBatch) -> LossParts:
        error_B = (model(batch.ids_BT, batch.mask_BT) - batch.counts_B) ** 2
        return LossParts({"squared_error": SumAndCount(error_B.sum(), len(error_B))})

    def write(self, folder: Path, model: nn.Module) -> None:
        write_model_folder(folder, model, self.base.tokenizer, {})

    def heads(self, model: Any) -> dict[str, Tensor]:
        return self.base.spec.export_head("count", model)


@dataclass(frozen=True)
class Count:
    text: str
    marks: float

    def record(self) -> dict[str, Any]:
        return {"text": self.text, "marks": self.marks}

    def lines(self, top: int) -> Iterator[str]:
        yield f"{self.marks:.1f}\t{self.text}"


class CountPredictor(Predictor):
    kinds = ("count",)

    def columns(
        self, path: Path, requested: LabelledColumns, reading: ReadOptions, reporter: Reporter
    ) -> Columns:
        return Columns(("text",))

    @torch.inference_mode()
    def answers(
        self, examples: Iterable[Example], *, top: int = 5, reporter: Reporter | None = None
    ) -> Iterator[Count]:
        model = self.folder.network().eval()
        for example in examples:
            batch = batch_of(self.folder, [example.text])
            yield Count(example.text, float(model(batch.ids_BT, batch.mask_BT)))


class CountEvaluator(Evaluator):
    kinds, reports = ("count",), ("count",)

    def choose(self) -> None:
        pass

    def run(self, reporter: Reporter) -> Report:
        texts = [line for line, _ in text_lines(self.path, ReadOptions())]
        examples = [Example(text, None, None, "") for text in texts]
        truth = np.array([*map(marks_of, texts)])
        found = [answer.marks for answer in CountPredictor(self.model).answers(examples)]
        results = {
            MODEL: {"error": float(np.abs(found - truth).mean())},
            "mean": {"error": float(np.abs(truth.mean() - truth).mean())},
        }
        return Report(task="count", data=self.path.name, results=results, summary=results[MODEL])

    @staticmethod
    def parts(report: Report) -> Iterator[ReportPart]:
        yield report.table("marks", [Figure("error", "error", ".2f")])


class CountEntry(TaskEntry):
    name, command = "count", "finetune"
    purpose = "count marks"

    def task(self) -> Any:
        return CountTask

    def evaluators(self) -> Sequence[Any]:
        return (CountEvaluator,)

    def predictor(self) -> Any:
        return CountPredictor
