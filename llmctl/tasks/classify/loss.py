"""The loss of classification: cross-entropy with the true class."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from llmctl.models.heads.classify import Classifier
from llmctl.tasks.classify.batches import ExampleBatch
from llmctl.training.batches import LossParts, SumAndCount


def classification_loss(
    model: Classifier, batch: ExampleBatch, class_weights: Tensor | None = None
) -> LossParts:
    """Cross-entropy in nats, each example weighted by its class where weights are given."""
    logits_BC = model(*batch.inputs).float()
    if class_weights is not None:
        class_weights = class_weights.to(logits_BC.device)
    nll = F.cross_entropy(logits_BC, batch.labels_B, weight=class_weights, reduction="sum")
    count = len(batch.labels_B)
    correct = (logits_BC.detach().argmax(-1) == batch.labels_B).sum()
    return LossParts(
        {"classification_loss": SumAndCount(nll, count)}, {"accuracy": SumAndCount(correct, count)}
    )
