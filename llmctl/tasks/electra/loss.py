"""The two losses of replaced-token detection, added with a weight (Clark et al. 2020, §2):

    L = L_MLM(G; x) + λ L_Disc(D; x̂),    L_Disc = mean over t of −log P(D says of x̂ₜ what is so)

A token that the generator puts back as it was counts as the text's own. What is drawn is a number
of a token: nothing of the discriminator's loss comes back to the generator through it, and both
teach the embeddings that they share.

B rows, T tokens in a row, M hidden tokens, N judged ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.models.heads.cross_entropy import linear_cross_entropy
from llmctl.models.heads.replaced_tokens import DetectorWithGenerator, sample_tokens
from llmctl.tasks.electra.batches import ReplacedBatch
from llmctl.tasks.masked_lm.loss import MASKED_STEP, in_steps
from llmctl.training.batches import LossParts, SumAndCount


def electra_loss(model: DetectorWithGenerator, batch: ReplacedBatch, weight: float) -> LossParts:
    """Cross-entropy of the hidden tokens under the generator, and of what the discriminator says of
    every token that isn't special, in nats. weight: of the latter, λ."""
    nll, correct, replaced = _generate(model, batch)
    judged_BT = batch.judged_BT
    logits_BT = model.logits(_read(model.body, replaced.ids_BT, batch))
    wrong_BT = F.binary_cross_entropy_with_logits(
        logits_BT, replaced.is_replaced_BT.float(), reduction="none"
    )
    told_BT = (logits_BT > 0) == replaced.is_replaced_BT
    hidden, judged = len(batch.labels_M), int(judged_BT.sum())
    return LossParts(
        {
            "generator_loss": SumAndCount(nll, hidden),
            "detection_loss": SumAndCount((wrong_BT * judged_BT).sum(), judged, weight),
        },
        {
            "generator_accuracy": SumAndCount(correct, hidden),
            "detection_accuracy": SumAndCount((told_BT & judged_BT).sum(), judged),
            "original_share": SumAndCount(judged - replaced.is_replaced_BT.sum(), judged),
        },
    )


@dataclass(frozen=True)
class ReplacedRows:
    """Rows in which the generator replaced tokens."""

    ids_BT: Tensor
    is_replaced_BT: Tensor
    """Bool: whether the token is another than the text's own."""


@torch.no_grad()
def replaced_rows(model: DetectorWithGenerator, batch: ReplacedBatch) -> ReplacedRows:
    """What the generator makes of a batch."""
    return _generate(model, batch)[2]


def _generate(
    model: DetectorWithGenerator, batch: ReplacedBatch
) -> tuple[Tensor, Tensor, ReplacedRows]:
    """The generator's summed loss, how many hidden tokens it has right, and what it puts there."""
    generator = model.generator
    flat_D = _read(generator.body, batch.input_ids_BT, batch).flatten(0, 1)
    # Logits at the hidden tokens alone: elsewhere they would be thrown away.
    places_M, labels_M = in_steps(batch.masked_M, batch.labels_M, MASKED_STEP)
    transformed_MD = generator.transformed(flat_D.index_select(0, places_M))
    weight_VD, bias_V = generator.output_weight, generator.output_bias
    nll, correct = linear_cross_entropy(transformed_MD, weight_VD, bias_V, labels_M)
    drawn_M = F.pad(batch.drawn_M, (0, len(labels_M) - len(batch.drawn_M)))
    sampled_M = sample_tokens(transformed_MD, weight_VD, bias_V, drawn_M)[: len(batch.labels_M)]
    ids = batch.input_ids_BT.flatten().index_copy(0, batch.masked_M, sampled_M)
    is_replaced = torch.zeros_like(ids, dtype=torch.bool)
    is_replaced = is_replaced.index_copy(0, batch.masked_M, sampled_M != batch.labels_M)
    shape = batch.input_ids_BT.shape
    return nll, correct, ReplacedRows(ids.view(shape), is_replaced.view(shape))


def _read(body: Any, ids_BT: Tensor, batch: ReplacedBatch) -> Tensor:
    hidden_BTD: Tensor = body(ids_BT, batch.segment_ids_BT, batch.packed, batch.position_ids_BT)
    return hidden_BTD
