"""Causal language modelling: each token from those before it (Radford et al. 2018, eq. 1).

    loss = −Σₜ log P(xₜ | x₁ … xₜ₋₁)

B rows, T tokens in a row, D width.
"""

from __future__ import annotations

import math

from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.cross_entropy import linear_cross_entropy
from llmctl.tasks.causal_lm.batches import CausalBatch
from llmctl.training.batches import LossParts, SumAndCount


def causal_lm_loss(model: CausalLM, batch: CausalBatch, *, z_loss: float = 0.0) -> LossParts:
    """Cross-entropy of the next tokens in nats; per byte of text, in bits.

    z_loss: weight of the squared logarithm of the softmax's normaliser, in training.
    """
    hidden_BTD = model.body(batch.input_ids_BT, batch.packed, batch.position_ids_BT)
    nll, correct = linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        model.output_weight,
        None,
        batch.labels_BT.flatten(),
        cap=model.body.config.output_cap(),
        z_weight=z_loss if model.training else 0.0,
    )
    bits = nll.detach() / math.log(2)
    return LossParts(
        {"lm_loss": SumAndCount(nll, batch.scored)},
        {
            "lm_accuracy": SumAndCount(correct, batch.scored),
            "bits_per_byte": SumAndCount(bits, batch.scored_bytes),
        },
    )
