"""Finetune a classifier that gives each text any number of labels: a yes or no to each of them.

B examples, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmctl.data.tables.labelled import Example, labels_of, read_examples
from llmctl.data.tables.labelled_files import find_separator
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.evaluation.multilabel import best_threshold
from llmctl.formats.description import MULTI_LABEL, PROBLEM, THRESHOLDS
from llmctl.models.heads.classify import Classifier
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.classify.batches import ExampleBatch
from llmctl.tasks.classify.task import ClassifyTask
from llmctl.tasks.examples import labels_in_order
from llmctl.training.batches import LossParts, SumAndCount

OUTCOMES = ("hits", "given", "true")
"""Names of what a micro F1 follows from."""


class MultiLabelTask(ClassifyTask):
    """Examples with any number of labels as batches, and a classifier to train on them."""

    def _read(self, reporter: Reporter, reading: ReadOptions) -> list[Example]:
        separator = self.config.label_separator or find_separator(self.data, self._columns, reading)
        self._columns = replace(self._columns, separator=separator)
        reporter.note(f"labels of {self._columns.label} are lists, or stand behind {separator!r}")
        rows = list(read_examples(self.data, self._columns, reading=reading))
        if blank := [row for row in rows if not row.text]:
            reporter.note(f"left out {len(blank)} rows without text (the first: {blank[0].source})")
        examples = [row for row in rows if row.text]
        if not examples:
            raise InputError(f"{self.data} has no labelled texts")
        return examples

    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, Any]:
        sets = {example.label or "": labels_of(example.label) for example in examples}
        self._counts = Counter(name for e in examples for name in sets[e.label or ""])
        self.labels = labels_in_order(self._counts)
        self._class_weights = None
        if not self.labels:
            raise InputError(f"{self.data} has not one label; check --label-column")
        if len({*map(frozenset, sets.values())}) == 1:
            raise InputError(
                f"{self.data}: all texts have the same labels ({', '.join(self.labels)}), so there "
                "is nothing to learn; check --label-column"
            )
        return {
            key: [float(label in names) for label in self.labels] for key, names in sets.items()
        }

    def loss(self, model: Classifier, batch: ExampleBatch) -> LossParts:
        """Binary cross-entropy in nats, the mean over labels, as transformers takes it."""
        logits_BC, true_BC = model(*batch.inputs).float(), batch.labels_B
        nll_BC = F.binary_cross_entropy_with_logits(logits_BC, true_BC, reduction="none")
        given_BC = logits_BC.detach() > 0
        sums = ((given_BC & (true_BC > 0)).sum(), given_BC.sum(), true_BC.sum())
        return LossParts(
            {"classification_loss": SumAndCount(nll_BC.mean(1).sum(), len(batch))},
            {
                name: SumAndCount(total, len(batch))
                for name, total in zip(OUTCOMES, sums, strict=True)
            },
        )

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        hits, given, true = (values[name] for name in OUTCOMES)
        f1 = 2 * hits / (given + true) if given + true else 0.0
        kept = {name: value for name, value in values.items() if name not in OUTCOMES}
        return {**kept, "micro_f1": f1, "criterion": values["loss"]}

    def _description(self, model: nn.Module) -> dict[str, Any]:
        return {PROBLEM: MULTI_LABEL, THRESHOLDS: self._thresholds(model)}

    @torch.inference_mode()
    def _thresholds(self, model: nn.Module) -> list[float]:
        """The thresholds with the best F1 on what is held out; 0.5 where nothing is."""
        batches = self.validation_batches()
        if not batches:
            return [0.5] * len(self.labels)
        model.eval()
        device = next(model.parameters()).device
        found, true = [], []
        for batch in batches:
            logits_BC = model(*batch.to(device).inputs)  # type: ignore[attr-defined]
            found.append(logits_BC.double().sigmoid().cpu().numpy())
            true.append(batch.labels_B.numpy() > 0)  # type: ignore[attr-defined]
        found_NC, true_NC = np.concatenate(found), np.concatenate(true)
        return [best_threshold(true_NC[:, c], found_NC[:, c]) for c in range(len(self.labels))]
