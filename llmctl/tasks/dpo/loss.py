"""Losses on pairs of answers, by what the model makes of them beside the reference.

With the ratios r = log π(answer | prompt) − log π_ref(answer | prompt) of the chosen (w) and the
rejected (l) answer and their difference δ = r_w − r_l:

    sigmoid   −(1 − ε) log σ(β δ) − ε log σ(−β δ)
              (Rafailov et al. 2023, "Direct Preference Optimization", eq. 7; ε, the share of
              preferences taken to be wrong: Mitchell 2023, "A note on DPO with noisy preferences")
    ipo       (δ − 1 / (2 β))²       (Azar et al. 2023, eq. 17, β being its τ)

Normalised by length, each ratio is divided by its answer's tokens; IPO's authors did so.

B pairs, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.tasks.dpo.answers import answer_log_probs
from llmctl.training.batches import LossParts, SumAndCount, TensorBatch

PairLoss = Literal["sigmoid", "ipo"]


@dataclass(frozen=True)
class PairBatch(TensorBatch):
    """Pairs of answers; of two the chosen one is first."""

    input_ids_B2T: Tensor
    labels_B2T: Tensor
    """The next token; IGNORED where it is not an answer's."""
    mask_B2T: Tensor
    """Where a token is no padding."""
    pair_B: Tensor
    """Numbers of the pairs, by which the reference is looked up."""

    @property
    def num_positions(self) -> int:
        return self.input_ids_B2T.numel()

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"dpo_loss": len(self)}


def pair_loss(delta_B: Tensor, *, kind: PairLoss, beta: float, label_smoothing: float) -> Tensor:
    """The loss of each pair (B,) by the difference δ of its ratios."""
    if kind == "ipo":
        return (delta_B - 1 / (2 * beta)).square()
    right_B, wrong_B = F.logsigmoid(beta * delta_B), F.logsigmoid(-beta * delta_B)
    return -(1 - label_smoothing) * right_B - label_smoothing * wrong_B


def ordered_right(delta: Tensor) -> Tensor:
    """1 where the chosen answer has more, 0 where the rejected one has; a tie is half right."""
    return (torch.sign(delta) + 1) / 2


def dpo_loss(
    model: Any,
    batch: PairBatch,
    reference_B2: Tensor,
    *,
    kind: PairLoss,
    beta: float,
    label_smoothing: float,
    length_normalised: bool,
) -> LossParts:
    """The loss of a batch of pairs.

    reference_B2: log-probabilities of the answers under the reference. Reported are the share of
    pairs in the right order, and the rewards β r that the model implies, with their difference.
    """
    flat = (part.flatten(0, 1) for part in (batch.input_ids_B2T, batch.labels_B2T, batch.mask_B2T))
    log_probs, tokens = answer_log_probs(model, *flat)
    ratio_B2 = log_probs.view(-1, 2) - reference_B2
    if length_normalised:
        ratio_B2 = ratio_B2 / tokens.view(-1, 2)
    delta_B = ratio_B2[:, 0] - ratio_B2[:, 1]
    loss_B = pair_loss(delta_B, kind=kind, beta=beta, label_smoothing=label_smoothing)
    rewards_B2 = beta * ratio_B2.detach()
    figures = {
        "preference_accuracy": ordered_right(delta_B.detach()),
        "margin": rewards_B2[:, 0] - rewards_B2[:, 1],
        "chosen_reward": rewards_B2[:, 0],
        "rejected_reward": rewards_B2[:, 1],
    }
    return LossParts(
        {"dpo_loss": SumAndCount(loss_B.sum(), len(batch))},
        {name: SumAndCount(figure_B.sum(), len(batch)) for name, figure_B in figures.items()},
    )
