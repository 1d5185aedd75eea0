"""The losses of both kinds of rows, of one network with one output layer:

    L = s L_causal + (1 − s) L_masked,   L_causal = −Σₜ log P(xₜ | x₁ … xₜ₋₁),
    L_masked = −Σ over hidden t of log P(xₜ | x with holes), read at place t − 1

each a mean over what it scores, s the share of the rows that are read from left to right
(Charpentier and Samuel 2024, §2).

B rows, T tokens in a row, D width, M scored tokens.
"""

from __future__ import annotations

import math

from torch import Tensor

from llmctl.models.heads.cross_entropy import IGNORED, linear_cross_entropy
from llmctl.models.heads.gpt_bert import MaskedNextTokenLM
from llmctl.tasks.gpt_bert.batches import GptBertBatch
from llmctl.tasks.masked_lm.loss import MASKED_STEP, in_steps
from llmctl.training.batches import LossParts, SumAndCount


def gpt_bert_loss(
    model: MaskedNextTokenLM, batch: GptBertBatch, *, z_loss: float = 0.0
) -> LossParts:
    """Cross-entropies in nats of next tokens and of hidden ones. z_loss: weight of the squared
    logarithm of the softmax's normaliser, in training."""
    K, counts = batch.causal_rows, batch.loss_denominators
    z_weight = z_loss if model.training else 0.0
    ids_BT, labels_BT = batch.input_ids_BT, batch.labels_BT
    nll, correct = _score(model, ids_BT[:K], labels_BT[:K], causal=True, z_weight=z_weight)
    masked_nll, masked_correct = _score(
        model, ids_BT[K:], labels_BT[K:], causal=False, z_weight=z_weight
    )
    causal_bytes = int(batch.bytes_B[batch.causal_B].sum())
    return LossParts(
        {
            "lm_loss": SumAndCount(nll, counts["lm_loss"], batch.causal_weight),
            "mntp_loss": SumAndCount(masked_nll, counts["mntp_loss"], 1 - batch.causal_weight),
        },
        {
            "lm_accuracy": SumAndCount(correct, counts["lm_loss"]),
            "bits_per_byte": SumAndCount(nll.detach() / math.log(2), causal_bytes),
            "mntp_accuracy": SumAndCount(masked_correct, counts["mntp_loss"]),
        },
    )


def _score(
    model: MaskedNextTokenLM, ids_BT: Tensor, labels_BT: Tensor, *, causal: bool, z_weight: float
) -> tuple[Tensor, Tensor]:
    """The summed loss of rows of one kind, and how many labels had the largest logit."""
    labels_M = labels_BT.flatten()
    if not len(ids_BT):
        zero = model.output_weight.new_zeros(())
        return zero, zero
    hidden_MD = (model.body(ids_BT) if causal else model.read(ids_BT)).flatten(0, 1)
    if not causal:
        # Logits before the hidden tokens alone.
        places_M = (labels_M != IGNORED).nonzero()[:, 0]
        places_M, labels_M = in_steps(places_M, labels_M[places_M], MASKED_STEP)
        hidden_MD = hidden_MD.index_select(0, places_M)
    return linear_cross_entropy(
        hidden_MD,
        model.output_weight,
        None,
        labels_M,
        cap=model.body.config.output_cap(),
        z_weight=z_weight,
    )
