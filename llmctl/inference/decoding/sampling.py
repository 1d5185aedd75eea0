"""Greedy decoding and sampling: the next token is the likeliest, or is drawn.

A token is drawn by the inverse of the cumulative distribution at a number that depends on the
seed, the prompt's number, the sample's and the place in the text alone: a text does not depend on
the batch that it was written in.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.data.random import key_of, uniform
from llmctl.inference.decoder import DecoderRunner
from llmctl.inference.decoding.rows import CompiledSamplingParams, SequenceState, apply, check


@torch.inference_mode()
def write(
    decoder: DecoderRunner,
    rows: Sequence[SequenceState],
    rules: CompiledSamplingParams,
) -> Iterator[SequenceState]:
    """Write rows to their end, a batch at once; each is given back when it is finished.

    Rows of one prompt that lie together read it once.
    """
    open_rows = list(rows)
    firsts = [n for n, row in enumerate(rows) if not n or row.prompt != rows[n - 1].prompt]
    logits_BV = decoder.prefill(
        [rows[n].ids for n in firsts], max(row.max_new_tokens for row in open_rows)
    )
    if len(firsts) < len(rows):
        repeats = torch.tensor([*firsts[1:], len(rows)]) - torch.tensor(firsts)
        source_B = torch.arange(len(firsts)).repeat_interleave(repeats).to(logits_BV.device)
        decoder.select(source_B)
        logits_BV = logits_BV[source_B]
    while True:
        chosen = choose(logits_BV, open_rows, rules)
        for row, token, log_prob in zip(open_rows, *chosen, strict=True):
            row.append(token, log_prob)
            if row.finish:
                yield row
        kept = [n for n, row in enumerate(open_rows) if not row.finish]
        if not kept:
            return
        if len(kept) < len(open_rows):
            decoder.select(torch.tensor(kept, device=logits_BV.device))
            open_rows = [open_rows[n] for n in kept]
        last_B1 = torch.tensor([row.ids[-1:] for row in open_rows], device=logits_BV.device)
        logits_BV = decoder.extend(last_B1)[:, -1]


def choose(
    logits_BV: Tensor,
    rows: Sequence[SequenceState],
    rules: CompiledSamplingParams,
    barred_BV: Tensor | None = None,
) -> tuple[list[int], list[float]]:
    """The next token of each row, and its log-probability under the model itself.

    barred_BV: True where a token may not come, whatever the rules say.
    """
    texts = [row.text for row in rows]
    scores_BV = logits_BV if barred_BV is None else logits_BV.masked_fill(barred_BV, -math.inf)
    scores_BV = apply(rules.processors, scores_BV, texts)
    if rules.config.samples:
        scores_BV = apply(rules.warpers, scores_BV, texts)
    best_B = argmax(scores_BV)
    check(scores_BV.gather(-1, best_B[:, None]))
    if rules.config.samples:
        tokens_B = draw(scores_BV.softmax(-1), [random(rules, row, row.new) for row in rows])
    else:
        tokens_B = best_B
    log_probs_B = -F.cross_entropy(logits_BV, tokens_B, reduction="none")
    return tokens_B.tolist(), log_probs_B.tolist()


def argmax(scores_BV: Tensor) -> Tensor:
    """The best token of each row, (B,)."""
    if scores_BV.device.type == "cpu":
        # 3 µs of a vocabulary of 50,000, where PyTorch takes 64.
        return torch.from_numpy(scores_BV.numpy().argmax(-1))
    return scores_BV.argmax(-1)


def random(
    rules: CompiledSamplingParams, row: SequenceState, place: int, purpose: str = "token"
) -> float:
    """A number in [0, 1) for the new token at ``place`` of a row."""
    key = key_of(rules.config.seed, "generate", purpose)
    return float(uniform(key, row.prompt, row.sample, place))


def draw(probability_BV: Tensor, numbers_B: Sequence[float]) -> Tensor:
    """The token at which each row's cumulative distribution passes a number in [0, 1), (B,).

    Rows need not sum to 1, and a token of probability 0 is never drawn.
    """
    mass_BV = probability_BV.cumsum(-1, dtype=torch.float64)
    total_B1 = mass_BV[:, -1:].contiguous()  # searchsorted warns otherwise
    number_B1 = torch.tensor(numbers_B, dtype=torch.float64, device=mass_BV.device)[:, None]
    token_B1 = torch.searchsorted(mass_BV, number_B1 * total_B1, right=True)
    last_B1 = torch.searchsorted(mass_BV, total_B1)
    return torch.minimum(token_B1, last_B1)[:, 0]
