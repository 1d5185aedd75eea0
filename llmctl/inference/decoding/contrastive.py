"""Contrastive search: a likely token that is unlike what was written (Su et al. 2022, "A
Contrastive Framework for Neural Text Generation", eq. 5).

    xₜ = argmax over the k likeliest v of (1 − α) p(v | x<ₜ) − α max over j < t of cos(hᵥ, hⱼ)

hᵥ is the hidden state of v behind the text, hⱼ that of the text's token j, the prompt's among them.
Every candidate is read, so a step costs k rows.

K candidates, T tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding.config import DEFAULT_CANDIDATES
from llmctl.inference.decoding.rows import CompiledSamplingParams, SequenceState, apply, check


@torch.inference_mode()
def write(
    decoder: CausalDecoder, row: SequenceState, rules: CompiledSamplingParams
) -> Iterator[SequenceState]:
    """Write a row to its end."""
    alpha = rules.config.penalty_alpha
    assert alpha is not None
    logits_1V = decoder.prefill([row.ids], row.max_new_tokens)
    directions_TD = F.normalize(decoder.hidden_BTD[0].float(), dim=-1)
    count = min(rules.config.top_k or DEFAULT_CANDIDATES, decoder.vocab_size)
    decoder.select(torch.zeros(count, dtype=torch.long, device=logits_1V.device))
    while True:
        scores_1V = apply(rules.processors, logits_1V, [row.text])
        check(scores_1V)
        best = scores_1V[0].softmax(-1).topk(count)
        log_probs_K = logits_1V[0, best.indices] - logits_1V.logsumexp(-1)
        logits_KV = decoder.extend(best.indices[:, None])[:, -1]
        candidates_KD = F.normalize(decoder.hidden_BTD[:, -1].float(), dim=-1)
        place = pick(best.values, candidates_KD, directions_TD, alpha)
        row.append(int(best.indices[place]), float(log_probs_K[place]))
        if row.finish:
            yield row
            return
        decoder.select(torch.full((count,), place, device=logits_1V.device))
        logits_1V = logits_KV[place : place + 1]
        directions_TD = torch.cat((directions_TD, candidates_KD[place : place + 1]))


def pick(probability_K: Tensor, candidates_KD: Tensor, directions_TD: Tensor, alpha: float) -> int:
    """Which candidate scores best; both kinds of hidden states have length 1."""
    alike_K = (candidates_KD @ directions_TD.T).amax(-1)
    score_K = (1 - alpha) * probability_K - alpha * alike_K
    # A candidate of probability 0 is barred.
    return int(score_K.masked_fill_(probability_K == 0, -torch.inf).argmax())
