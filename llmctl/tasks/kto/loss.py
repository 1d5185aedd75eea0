"""The loss on answers that are good or bad, each by itself (Ethayarajh et al. 2024, "KTO: Model
Alignment as Prospect Theoretic Optimization", §4.1).

With the ratio r = log π(answer | prompt) − log π_ref(answer | prompt):

    z₀ = max(0, mean of the ratios of the batch's prompts with other prompts' answers)
    λ_D (1 − σ(β (r − z₀)))      of a desirable answer
    λ_U (1 − σ(β (z₀ − r)))      of an undesirable one

z₀ estimates how far the model is from the reference, and has no gradient. It is of the whole batch:
the ratios are computed in parts and by all processes, and compared as a whole.

B answers, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmctl.tasks.dpo.answers import answer_log_probs
from llmctl.training.batches import ComparedLoss, LossParts, SumAndCount, TensorBatch


@dataclass(frozen=True)
class RatedBatch(TensorBatch):
    """Answers, each beside another prompt's answer to the same prompt."""

    input_ids_B2T: Tensor
    labels_B2T: Tensor
    """The next token; IGNORED where it is not an answer's."""
    mask_B2T: Tensor
    """Where a token is no padding."""
    answer_B: Tensor
    """Numbers of the answers, by which the reference is looked up."""
    desirable_B: Tensor

    @property
    def num_positions(self) -> int:
        return self.input_ids_B2T.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"kto_loss": len(self)}


def kto_losses(
    ratio_B: Tensor,
    other_ratio_B: Tensor,
    desirable_B: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple[Tensor, Tensor]:
    """The loss of each answer (B,), and z₀. other_ratio_B: of other prompts' answers."""
    z_0 = other_ratio_B.detach().mean().clamp(min=0)
    gain_B = torch.where(desirable_B, ratio_B - z_0, z_0 - ratio_B)
    weight_B = torch.where(desirable_B, desirable_weight, undesirable_weight)
    return weight_B * (1 - torch.sigmoid(beta * gain_B)), z_0


@dataclass(frozen=True)
class KtoLoss(ComparedLoss):
    """What answers are trained by."""

    reference: Callable[[Tensor], Tensor]
    """From numbers of answers (B,) to the log-probabilities under the reference (B, 2) of the
    answers and of the others to the same prompts."""
    beta: float
    desirable_weight: float
    undesirable_weight: float

    def encode(self, model: Any, batch: Any) -> Tensor:
        """Log-probability of the answers, and of the others without a gradient: (B, 2)."""
        parts = (batch.input_ids_B2T, batch.labels_B2T, batch.mask_B2T)
        own_B, _ = answer_log_probs(model, *(part[:, 0] for part in parts))
        with torch.no_grad():
            other_B, _ = answer_log_probs(model, *(part[:, 1] for part in parts))
        return torch.stack([own_B, other_B], dim=1)

    def compare(self, encoded: Tensor, batch: RatedBatch) -> LossParts:
        ratio_B2 = encoded - self.reference(batch.answer_B)
        ratio_B, good_B = ratio_B2[:, 0], batch.desirable_B
        loss_B, z_0 = kto_losses(
            ratio_B,
            ratio_B2[:, 1],
            good_B,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        reward_B, good = self.beta * ratio_B.detach(), int(good_B.sum())
        return LossParts(
            {"kto_loss": SumAndCount(loss_B.sum(), len(batch))},
            {
                "kl": SumAndCount(z_0 * len(batch), len(batch)),
                "desirable_reward": SumAndCount(reward_B[good_B].sum(), good),
                "undesirable_reward": SumAndCount(reward_B[~good_B].sum(), len(batch) - good),
            },
        )
