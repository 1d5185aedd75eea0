"""Strategies: the logits of the next token in, logits out.

Each is a function of the logits, the texts so far and its value in ``GenerationConfig``, and is
left out where that is unset. A token that may not come has the logit −∞. They apply in the order
of the two tables below, which is the order of transformers where it has them: first what changes
which token is best, then, where tokens are drawn, what narrows the choice.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

NUCLEUS = 512
"""Tokens among which a share of the probability is looked for before all are sorted, which in a
large vocabulary takes ten times as long."""
LEAST_DIVIDED, MOST_DIVIDED = 1e-6, 1e6
"""Temperatures by which logits are divided as they are: fp32 holds what comes out."""


class Text(NamedTuple):
    """What a row has so far."""

    ids: Sequence[int]
    """The prompt's tokens and the new ones."""
    prompt: int
    """How many of them are the prompt's."""


LogitsProcessor = Callable[[Tensor, Sequence[Text]], Tensor]


def logit_bias(
    logits_BV: Tensor, texts: Sequence[Text], pairs: Sequence[tuple[int, float]]
) -> Tensor:
    """Some tokens' logits are raised or lowered."""
    tokens, biases = zip(*pairs, strict=True)
    added_V = torch.zeros_like(logits_BV[0])
    where = torch.tensor(tokens, device=logits_BV.device)
    return logits_BV + added_V.index_add_(0, where, added_V.new_tensor(biases))


def allowed_token_ids(logits_BV: Tensor, texts: Sequence[Text], allowed: Sequence[int]) -> Tensor:
    """No other token than these may come."""
    barred_V = torch.ones_like(logits_BV[0], dtype=torch.bool)
    barred_V[list(allowed)] = False
    return logits_BV.masked_fill(barred_V, -math.inf)


def repetition_penalty(logits_BV: Tensor, texts: Sequence[Text], penalty: float) -> Tensor:
    """Tokens that the text has are less likely (Keskar et al. 2019, CTRL)."""
    seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    for seen_V, text in zip(seen_BV, texts, strict=True):
        seen_V[list(set(text.ids))] = True
    lowered_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def frequency_penalty(logits_BV: Tensor, texts: Sequence[Text], penalty: float) -> Tensor:
    """Each time that a token was written takes from its logit; the prompt doesn't count."""
    return logits_BV - penalty * _written(logits_BV, texts)


def presence_penalty(logits_BV: Tensor, texts: Sequence[Text], penalty: float) -> Tensor:
    """That a token was written at all takes from its logit; the prompt doesn't count."""
    return logits_BV - penalty * (_written(logits_BV, texts) > 0)


def _written(logits_BV: Tensor, texts: Sequence[Text]) -> Tensor:
    counts_BV = torch.zeros_like(logits_BV)
    for counts_V, text in zip(counts_BV, texts, strict=True):
        new = torch.tensor(text.ids[text.prompt :], dtype=torch.long, device=logits_BV.device)
        counts_V.index_add_(0, new, torch.ones_like(new, dtype=logits_BV.dtype))
    return counts_BV


def no_repeat_ngram_size(logits_BV: Tensor, texts: Sequence[Text], size: int) -> Tensor:
    """No n-gram comes twice (Paulus et al. 2018): what followed the last n − 1 tokens before."""
    barred = []
    for ids, _ in texts:
        last = ids[len(ids) - size + 1 :]
        starts = range(len(ids) - size + 1)
        barred.append([ids[n + size - 1] for n in starts if ids[n : n + size - 1] == last])
    return _without(logits_BV, barred)


def bad_words(logits_BV: Tensor, texts: Sequence[Text], words: Sequence[Sequence[int]]) -> Tensor:
    """The last token of a sequence is barred where the others stand before it."""
    barred = [
        [last for *first, last in words if first == list(ids[len(ids) - len(first) :])]
        for ids, _ in texts
    ]
    return _without(logits_BV, barred)


class MinNewTokens(NamedTuple):
    """New tokens before which none of ``ends`` may come."""

    tokens: int
    ends: Collection[int]


def min_new_tokens(logits_BV: Tensor, texts: Sequence[Text], minimum: MinNewTokens) -> Tensor:
    """A text does not end before it is long enough."""
    short = [len(ids) - prompt < minimum.tokens for ids, prompt in texts]
    return _without(logits_BV, [minimum.ends if row else () for row in short])


def _without(logits_BV: Tensor, barred: Sequence[Collection[int]]) -> Tensor:
    if not any(barred):
        return logits_BV
    rows = [row for row, tokens in enumerate(barred) for _ in tokens]
    result_BV = logits_BV.clone()
    result_BV[rows, list(chain.from_iterable(barred))] = -math.inf
    return result_BV


def temperature(logits_BV: Tensor, texts: Sequence[Text], value: float) -> Tensor:
    """Below 1 the likely tokens become likelier (Ackley et al. 1985).

    At the ends of what can be said: the likeliest alone, or all that may come alike.
    """
    if LEAST_DIVIDED <= value <= MOST_DIVIDED:
        return logits_BV / value
    # From their maximum, which is then 0: no quotient is infinity, and none 0 / 0.
    finite = torch.finfo(logits_BV.dtype)
    highest_B1 = logits_BV.amax(-1, keepdim=True)
    return (logits_BV - highest_B1) / min(max(value, finite.tiny), finite.max)


def top_k(logits_BV: Tensor, texts: Sequence[Text], count: int) -> Tensor:
    """The k likeliest tokens (Fan et al. 2018), and those as likely as the last of them."""
    least_B1 = logits_BV.topk(min(count, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def top_p(logits_BV: Tensor, texts: Sequence[Text], share: float) -> Tensor:
    """The nucleus: the fewest likeliest tokens that have this share of the probability (Holtzman
    et al. 2020)."""
    return _share(logits_BV, -logits_BV, share)


def min_p(logits_BV: Tensor, texts: Sequence[Text], share: float) -> Tensor:
    """Tokens at least this share as likely as the likeliest (Nguyen et al. 2024)."""
    probability_BV = logits_BV.softmax(-1)
    least_B1 = share * probability_BV.amax(-1, keepdim=True)
    return logits_BV.masked_fill(probability_BV < least_B1, -math.inf)


def typical_p(logits_BV: Tensor, texts: Sequence[Text], share: float) -> Tensor:
    """Tokens whose surprise −log p is nearest to the entropy, up to this share of the probability
    (Meister et al. 2022)."""
    log_BV = logits_BV.log_softmax(-1)
    entropy_B1 = -(log_BV.exp() * log_BV).nansum(-1, keepdim=True)
    return _share(logits_BV, (log_BV + entropy_B1).abs(), share)


def _share(logits_BV: Tensor, oddness_BV: Tensor, share: float) -> Tensor:
    """The least odd tokens: each is kept that has less than ``share`` before it, and those as odd
    as the last of these."""
    probability_BV = logits_BV.softmax(-1)
    V = logits_BV.shape[-1]
    for count in (min(NUCLEUS, V), V):
        odd_BK, token_BK = oddness_BV.topk(count, largest=False)
        mass_BK = probability_BV.gather(-1, token_BK).cumsum(-1)
        if (mass_BK[:, -1] >= share).all():
            break
    before_BK = mass_BK.roll(1, -1)
    before_BK[:, 0] = 0.0
    # One is kept whatever the share, which fp32 may take for 0.
    last_B1 = ((before_BK < share).sum(-1, keepdim=True) - 1).clamp(min=0)
    return logits_BV.masked_fill(oddness_BV > odd_BK.gather(-1, last_B1), -math.inf)


Function = Callable[[Tensor, Sequence[Text], Any], Tensor]

LOGITS_PROCESSORS: Mapping[str, Function] = {
    "logit_bias": logit_bias,
    "allowed_token_ids": allowed_token_ids,
    "repetition_penalty": repetition_penalty,
    "frequency_penalty": frequency_penalty,
    "presence_penalty": presence_penalty,
    "no_repeat_ngram_size": no_repeat_ngram_size,
    "bad_words": bad_words,
    "min_new_tokens": min_new_tokens,
}
"""By the field of ``GenerationConfig``: which token is best. Every method of search has them."""

LOGITS_WARPERS: Mapping[str, Function] = {
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
}
"""By the field of ``GenerationConfig``: among which tokens to draw. Sampling has them."""


def chosen(table: Mapping[str, Function], values: Mapping[str, Any]) -> list[LogitsProcessor]:
    """The strategies of a table that are set, bound to their values."""
    return [
        partial(_apply, processor, values[name])
        for name, processor in table.items()
        if values[name]
    ]


def _apply(processor: Function, value: Any, logits_BV: Tensor, texts: Sequence[Text]) -> Tensor:
    return processor(logits_BV, texts, value)
