"""The loss on answers by their rewards: GRPO (Shao et al. 2024, "DeepSeekMath", §4.1) as Dr. GRPO
has it (Liu et al. 2025, "Understanding R1-Zero-Like Training", §3.2).

With the rewards R of a prompt's G answers and w = π(token) / π_old(token):

    A = R − mean(R)        not divided by their standard deviation
    loss = −Σ min(w A, clip(w, 1 − ε, 1 + ε) A) / (G L)
                           summed over tokens; L is the most that an answer may have, not its length
    + β Σ (exp(d) − d − 1) / (G L),   d = log π_ref − log π    (Schulman 2020's estimate of the KL)

Dividing by the deviation favours prompts that are easy or hopeless, and by the length favours wrong
answers that are long.

M tokens of all answers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards_BG: Tensor) -> Tensor:
    """How much better each answer is than its prompt's on average, (B, G)."""
    return rewards_BG - rewards_BG.mean(1, keepdim=True)


def clipped_loss(
    log_probs_M: Tensor, old_M: Tensor, advantage_M: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """The summed loss of tokens, and how many of them are moved no more as their ratio is beyond
    the clip. old_M: their log-probabilities when they were drawn."""
    ratio_M = torch.exp(log_probs_M - old_M)
    bounded_M = ratio_M.clamp(1 - clip, 1 + clip)
    gain_M = torch.minimum(ratio_M * advantage_M, bounded_M * advantage_M)
    clipped = (bounded_M * advantage_M < ratio_M * advantage_M).sum()
    return -gain_M.sum(), clipped


def kl_estimate(log_probs_M: Tensor, reference_M: Tensor) -> Tensor:
    """The summed estimate of the divergence from the reference: never negative."""
    difference_M = reference_M - log_probs_M
    return (difference_M.exp() - difference_M - 1).sum()
