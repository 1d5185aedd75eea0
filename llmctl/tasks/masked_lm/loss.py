"""The loss of masked language modelling: hidden tokens, and whether B follows A (Devlin et al.
2018, §3.1). The two are added.

The head runs at the chosen positions only: elsewhere its output would be thrown away, and with a
small body it is half of the cost.

B rows, T tokens in a row, D width, M masked tokens, S texts (pairs) in the batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from llmctl.models.heads.cross_entropy import IGNORED, linear_cross_entropy
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.heads.padding import rounded_up
from llmctl.tasks.masked_lm.batches import MaskedBatch
from llmctl.training.batches import LossParts, SumAndCount

MASKED_STEP, TEXTS_STEP = 64, 32
"""Masked tokens and texts of a batch are filled up to multiples of these: see ``rounded_up``."""


def masked_lm_loss(model: MaskedLM, batch: MaskedBatch) -> LossParts:
    """Cross-entropy of the hidden tokens and of the pair labels, in nats."""
    hidden_BTD = model.body(
        batch.input_ids_BT, batch.segment_ids_BT, batch.packed, batch.position_ids_BT
    )
    flat_D = hidden_BTD.flatten(0, 1)
    places_M, labels_M = in_steps(batch.masked_M, batch.labels_M, MASKED_STEP)
    nll, correct = linear_cross_entropy(
        model.transformed(flat_D.index_select(0, places_M)),
        model.output_weight,
        model.output_bias,
        labels_M,
    )
    count = len(batch.labels_M)
    losses = {"mlm_loss": SumAndCount(nll, count)}
    metrics = {"mlm_accuracy": SumAndCount(correct, count)}
    if model.next_sentence is not None:
        count = len(batch.next_labels_S)
        places_S, labels_S = in_steps(batch.cls_S, batch.next_labels_S, TEXTS_STEP)
        logits_S2 = model.next_logits(flat_D.index_select(0, places_S)).float()
        losses["nsp_loss"] = SumAndCount(
            F.cross_entropy(logits_S2, labels_S, reduction="sum"), count
        )
        metrics["nsp_accuracy"] = SumAndCount((logits_S2.argmax(-1) == labels_S).sum(), count)
    return LossParts(losses, metrics)


def in_steps(places: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Filled up to a multiple of ``step`` with a place that is not scored."""
    missing = rounded_up(len(labels), step) - len(labels)
    return F.pad(places, (0, missing)), F.pad(labels, (0, missing), value=IGNORED)
