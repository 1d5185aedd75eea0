"""Speculative decoding: a small model writes ahead, the large one judges several tokens at once
(Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding").

Of a token x that the draft drew from q, the target has p: it is kept with probability
min(1, p(x) / q(x)); the first that isn't is replaced by one drawn from max(0, p − q), normed. So
every token is distributed as the target alone would have it, whatever the draft. Strategies apply
to both models alike. Where nothing is drawn p and q are 1 at the best token, and the text is that
of greedy decoding.

T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.inference.decoder import TruncatableRunner
from llmctl.inference.decoding.rows import CompiledSamplingParams, SequenceState, apply, check
from llmctl.inference.decoding.sampling import argmax, draw, random
from llmctl.inference.decoding.strategies import Text


@torch.inference_mode()
def write(
    target: TruncatableRunner,
    draft: TruncatableRunner,
    row: SequenceState,
    rules: CompiledSamplingParams,
) -> Iterator[SequenceState]:
    """Write a row to its end."""
    first_1V = target.prefill([row.ids], row.max_new_tokens + rules.config.draft_tokens)
    p_1V = distributions(first_1V, [row.text], rules)
    token = pick(p_1V, rules, row, row.new)
    row.append(token, log_prob(first_1V[0], token))
    prefilled = False
    """Whether the draft has read the prompt."""
    draft_length = row.start
    """How many tokens of the text the draft has read, once it has read the prompt."""
    while not row.finish:
        ahead = min(rules.config.draft_tokens, row.max_new_tokens - row.new - 1)
        if draft.max_positions is not None:
            # A shorter context than the target's: beyond it the target writes alone.
            ahead = min(ahead, draft.max_positions - len(row.ids))
        guesses: list[int] = []
        q_TV: list[Tensor] = []
        if ahead > 0 and not prefilled:
            draft.prefill([row.ids[: row.start]], row.max_new_tokens + rules.config.draft_tokens)
            prefilled = True
        for _ in range(ahead):
            unread = [*row.ids, *guesses][draft_length:]
            draft_length += len(unread)
            logits_1V = draft.extend(on(unread, first_1V))[:, -1].to(first_1V.device)
            text = Text([*row.ids, *guesses], row.start)
            q_1V = distributions(logits_1V, [text], rules)
            guesses.append(pick(q_1V, rules, row, row.new + len(guesses), "draft"))
            q_TV.append(q_1V)
            if guesses[-1] in row.ends:
                break
        read = len(row.ids)
        logits_TV = target.extend(on([row.ids[-1], *guesses], first_1V))[0]
        texts = [Text([*row.ids, *guesses[:n]], row.start) for n in range(len(guesses) + 1)]
        p_TV = distributions(logits_TV, texts, rules)
        accepted, last = judge(p_TV, q_TV, guesses, rules, row)
        row.drafted += len(guesses)
        for n, token in enumerate([*guesses[:accepted], last]):
            row.accepted += n < accepted
            row.append(token, log_prob(logits_TV[n], token))
            if row.finish:
                break
        # What both have read of guesses that were not kept is forgotten.
        target.truncate(read + accepted)
        draft_length = min(draft_length, read + accepted)
        if prefilled:
            draft.truncate(draft_length)
    yield row


def choose_guessed(
    logits_1V: Tensor,
    row: SequenceState,
    rules: CompiledSamplingParams,
    guess: int,
    q_1V: Tensor,
    barred_1V: Tensor | None = None,
) -> tuple[int, float]:
    """The next token of a row for which there is a guess, drawn from q, and its log-probability
    under the model itself.

    barred_1V: True where a token may not come, whatever the rules say.
    """
    scores_1V = logits_1V if barred_1V is None else logits_1V.masked_fill(barred_1V, -math.inf)
    p_1V = distributions(scores_1V, [row.text], rules)
    token, _ = judged(p_1V, q_1V, guess, rules, row, row.new)
    return token, log_prob(logits_1V[0], token)


def distributions(
    logits_TV: Tensor, texts: Sequence[Text], rules: CompiledSamplingParams
) -> Tensor:
    """What the next token behind each text is drawn from, (T, V)."""
    scores_TV = apply(rules.processors, logits_TV, texts)
    check(scores_TV)
    if rules.config.samples:
        return apply(rules.warpers, scores_TV, texts).softmax(-1)
    return F.one_hot(argmax(scores_TV), scores_TV.shape[-1]).to(scores_TV.dtype)


def judge(
    p_TV: Tensor,
    q_TV: list[Tensor],
    guesses: list[int],
    rules: CompiledSamplingParams,
    row: SequenceState,
) -> tuple[int, int]:
    """How many of the guesses are kept, and the token behind them."""
    for n, (guess, q_1V) in enumerate(zip(guesses, q_TV, strict=True)):
        token, kept = judged(p_TV[n : n + 1], q_1V, guess, rules, row, row.new + n)
        if not kept:
            return n, token
    return len(guesses), pick(p_TV[-1:], rules, row, row.new + len(guesses))


def judged(
    p_1V: Tensor,
    q_1V: Tensor,
    guess: int,
    rules: CompiledSamplingParams,
    row: SequenceState,
    place: int,
) -> tuple[int, bool]:
    """The new token at a place of a row, and whether it is the guess that was drawn from q."""
    number = random(rules, row, place, "judge")
    if number * float(q_1V[0, guess]) < float(p_1V[0, guess]):
        return guess, True
    left_1V = (p_1V - q_1V).clamp_(min=0)
    # Nothing is left where both are the same but for rounding.
    return pick(left_1V if left_1V.any() else p_1V, rules, row, place), False


def pick(
    probability_1V: Tensor,
    rules: CompiledSamplingParams,
    row: SequenceState,
    place: int,
    purpose: str = "token",
) -> int:
    """A token of a distribution that may lack its norm."""
    return int(draw(probability_1V, [random(rules, row, place, purpose)])[0])


def log_prob(logits_V: Tensor, token: int) -> float:
    return float(logits_V[token] - logits_V.logsumexp(-1))


def on(tokens: list[int], like: Tensor) -> Tensor:
    """Tokens as a row, where a tensor is."""
    return torch.tensor([tokens], device=like.device)
