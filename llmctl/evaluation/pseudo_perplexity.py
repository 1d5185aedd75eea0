"""Pseudo-perplexity of a masked language model (Salazar et al. 2020, eq. 3).

Each token is hidden in turn and predicted from all the others:
PPPL = exp(-1/N Σ log P(wₜ | all but wₜ)). It needs one forward pass a token, so it is measured on
a part of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn import functional as F

from llmctl.models.heads.masked_lm import MaskedLM

ROWS_AT_ONCE = 64


@torch.inference_mode()
def pseudo_perplexity(
    model: MaskedLM,
    texts: Iterable[list[int]],
    special: Mapping[str, int],
    *,
    max_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
    part: tuple[int, int] = (0, 1),
    summed: Callable[[float], float] = lambda own: own,
) -> tuple[float, int]:
    """(pseudo-perplexity, tokens scored) over texts of plain ids, up to ``max_tokens`` tokens.

    special: ids of the tokenizer's special tokens. part: which one this is of so many processes
    that divide the passes. summed: adds up what each of them found.
    """
    model.eval()
    device = next(model.parameters()).device
    total, scored, passes = 0.0, 0, 0
    for ids in texts:
        row = torch.tensor([special["cls"], *ids, special["sep"]])
        places = torch.arange(1, len(ids) + 1)[: max_tokens - scored]
        for group in places.split(ROWS_AT_ONCE):
            if passes % part[1] == part[0]:
                hidden_BT = row.repeat(len(group), 1)
                hidden_BT[torch.arange(len(group)), group] = special["mask"]
                at_masks_BD = model.body.hidden_at(hidden_BT.to(device), group.to(device))
                nll = F.cross_entropy(
                    model.token_logits(at_masks_BD), row[group].to(device), reduction="sum"
                )
                total += float(nll)
            passes += 1
            scored += len(group)
            progress(scored)
        if scored >= max_tokens:
            break
    return math.exp(summed(total) / max(scored, 1)), scored
