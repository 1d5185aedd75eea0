"""Finetune a classifier whose classes are in an order, such as one to five stars.

It has an ordinary classifier's network, so that its folder opens elsewhere as one. What is learned
are the answers to "more than c?", which follow from the softmax (Li and Lin 2006; CORAL, Cao et al.
2020, has a network for them):

    loss = −Σ over c of  [y > c] log P(y > c) + [y ≤ c] log P(y ≤ c)

so a class that is farther off costs more; what is given is the median of the classes.

B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.data.tables.labelled import Example
from llmctl.errors import ConfigError
from llmctl.formats.description import ORDINAL, PROBLEM
from llmctl.models.heads.classify import Classifier
from llmctl.tasks.classify.batches import ExampleBatch
from llmctl.tasks.classify.task import ClassifyTask
from llmctl.training.batches import LossParts, SumAndCount


class OrdinalTask(ClassifyTask):
    """Labelled examples as batches, and a classifier of ordered classes to train on them."""

    def _numbers(self, examples: Sequence[Example]) -> Mapping[str, float]:
        numbers, order = super()._numbers(examples), self.config.order
        if not order:
            if not all(map(_is_number, self.labels)):
                raise ConfigError(
                    f"--ordinal: the labels ({', '.join(self.labels[:5])}) are no numbers, so "
                    "their order isn't told; give it, from low to high: --set order=low,high"
                )
            return numbers
        if missing := sorted({*self.labels} - {*order}):
            raise ConfigError(f"order: {self.data} has the label {missing[0]!r}, too; add it")
        self.labels = list(order)
        return {label: number for number, label in enumerate(self.labels)}

    def loss(self, model: Classifier, batch: ExampleBatch) -> LossParts:
        """The loss of the cumulative questions in nats, and how far off answers are."""
        logits_BC, labels_B = model(*batch.inputs).float(), batch.labels_B
        more_BQ, less_BQ = cumulative(logits_BC)
        above_BQ = labels_B[:, None] > torch.arange(more_BQ.shape[1], device=labels_B.device)
        total = -torch.where(above_BQ, more_BQ, less_BQ).sum()
        given_B = (more_BQ.detach() > less_BQ.detach()).sum(1)
        count = len(batch)
        return LossParts(
            {"classification_loss": SumAndCount(total, count)},
            {
                "accuracy": SumAndCount((given_B == labels_B).sum(), count),
                "mean_error": SumAndCount((given_B - labels_B).abs().sum(), count),
            },
        )

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        return {**values, "criterion": values["mean_error"] + 1e-3 * values["loss"]}

    def _description(self, model: nn.Module) -> dict[str, Any]:
        return {PROBLEM: "single_label_classification", ORDINAL: True}


def cumulative(logits_BC: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of P(y > c) and P(y ≤ c) for each class c but the last, (B, C − 1) both."""
    logs_BC = logits_BC.log_softmax(-1)
    less_BC = logs_BC.logcumsumexp(-1)
    more_BC = logs_BC.flip(-1).logcumsumexp(-1).flip(-1)
    return more_BC[:, 1:], less_BC[:, :-1]


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
