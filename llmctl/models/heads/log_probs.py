"""Log-probabilities of given tokens, each by itself, with a gradient.

Where a loss is no sum over tokens (preferences, rewards) each token's log-probability is wanted.
The table of all logits would be large, so rows are taken a few at a time and their logits are made
again on the way back.

M tokens, R of them at a time, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llmctl.models.heads.cross_entropy import rows_at_a_time


def token_log_probs(
    model: Any, hidden_MD: Tensor, tokens_M: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token in nats, and the entropy of what it was drawn from, which has
    no gradient.

    model: a ``CausalLM``. hidden_MD: the hidden state before each token. temperature: what logits
    are divided by. Both are (M,), in fp32.
    """
    rows = rows_at_a_time(hidden_MD.device, len(model.output_weight))
    parts = []
    for begin in range(0, len(tokens_M), rows):
        part = slice(begin, begin + rows)
        given = (model, hidden_MD[part], tokens_M[part], temperature)
        if torch.is_grad_enabled():
            # Nothing is drawn there, so no state of a generator is to be kept for the second time.
            parts.append(checkpoint(_scored, *given, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_scored(*given))
    if not parts:
        none_M = hidden_MD.sum(1).float()
        return none_M, none_M.detach()
    log_probs, entropies = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _scored(
    model: Any, hidden_RD: Tensor, tokens_R: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    log_probs_RV = F.log_softmax(model.logits(hidden_RD) / temperature, dim=-1)
    with torch.no_grad():
        entropy_R = -(log_probs_RV.exp() * log_probs_RV).nan_to_num(0.0).sum(-1)
    return log_probs_RV.gather(-1, tokens_R[:, None])[:, 0], entropy_R
