"""The loss of restoring a text: cross-entropy of the target's tokens, each given those before it
and the source (Lewis et al. 2019, §2.2).

B rows, S tokens of a source, T of a target, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmctl.models.heads.cross_entropy import IGNORED, linear_cross_entropy
from llmctl.tasks.denoise.batches import DenoisingBatch
from llmctl.training.batches import LossParts, SumAndCount


def denoising_loss(model: Any, batch: DenoisingBatch) -> LossParts:
    """Cross-entropy of the targets' tokens in nats. Where nothing is trained, that of the tokens
    which the source does not show, too: the others can be copied, and mark spans and the end.

    model: an encoder–decoder with its output layer.
    """
    hidden_BTD = model(batch.source_ids_BS, batch.source_lengths_B, batch.input_ids_BT)

    def scored(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(
            hidden_BTD.flatten(0, 1), model.output_weight, model.output_bias, labels_BT.flatten()
        )

    nll, correct = scored(batch.labels_BT)
    losses = {"denoising_loss": SumAndCount(nll, batch.scored)}
    metrics = {"denoising_accuracy": SumAndCount(correct, batch.scored)}
    if not model.training:
        count = int(batch.hidden_BT.sum())
        nll, correct = scored(batch.labels_BT.where(batch.hidden_BT, IGNORED))
        metrics["hidden_loss"] = SumAndCount(nll, count)
        metrics["hidden_accuracy"] = SumAndCount(correct, count)
    return LossParts(losses, metrics)
