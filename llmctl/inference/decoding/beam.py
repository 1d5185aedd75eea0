"""Beam search: the texts of the highest probability, as far as a few at once can find them.

Each step scores every continuation of the beams by the sum of its log-probabilities and goes on
with the best. One that ends is kept apart, by score / length ** length_penalty (Wu et al. 2016,
without coverage), and must be among the best ``num_beams`` continuations to be. Semantics are those
of transformers' beam search, the early stopping too.

P prompts, B beams of each, R = P · B rows, T new tokens, V vocabulary, C chunks of it, W tokens
that are looked at for each, K best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmctl.inference.decoder import DecoderRunner, EncoderDecoderRunner
from llmctl.inference.decoding.rows import (
    CompiledSamplingParams,
    Completion,
    SequenceState,
    apply,
    check,
)
from llmctl.inference.decoding.strategies import Text

CHUNK = 96
"""Tokens of the vocabulary that are looked through together. For 64 prompts of 4 beams of 6,000
tokens 100 took 0.43 ms and 200 took 0.49, where topk takes 1.7."""

WITHIN_EXP = 60.0
"""Size of a row's largest logit up to which the sum of its exponentials neither overflows nor
loses what counts in fp32, so that the largest need not be taken from each first, which takes as
long as the exponentials."""


class Candidates(NamedTuple):
    """Continuations of each prompt's beams, best first, (P, K) each."""

    scores_PK: Tensor
    """Sums of log-probabilities after the strategies."""
    log_probs_PK: Tensor
    """Log-probabilities of the new tokens before the logits processors."""
    rows_PK: Tensor
    """Which beam each continues."""
    tokens_PK: Tensor


class Finished(NamedTuple):
    """A text that has ended."""

    ids: list[int]
    """The new tokens."""
    log_probs: list[float]
    """Under the model itself."""
    score: float
    """With the length penalty."""


class Search:
    """What one prompt's search has found."""

    def __init__(
        self,
        rules: CompiledSamplingParams,
        number: int,
        prompt: Sequence[int],
        limit: int,
        forced: int = 0,
    ) -> None:
        """forced: tokens of the prompt that the length penalty counts as written."""
        self.forced = forced
        self.rules, self.number, self.prompt, self.limit = rules, number, prompt, limit
        config = rules.config
        self.width = config.num_beams
        self.penalty = 1.0 if config.length_penalty is None else config.length_penalty
        self.early: bool | Literal["never"] = config.early_stopping or False
        self.finished: list[Finished] = []
        """The best so far, best first."""

    def keep(self, ids: list[int], log_probs: list[float], score: float) -> None:
        """A text has ended with this sum of log-probabilities."""
        self.finished.append(Finished(ids, log_probs, score / self._norm(len(ids))))
        self.finished.sort(key=lambda finished: -finished.score)
        del self.finished[self.width :]

    def is_over(self, best: float, length: int) -> bool:
        """Whether no beam is followed further, of which the best has this score and all have so
        many new tokens."""
        if best == -math.inf:
            return True
        if len(self.finished) < self.width:
            return False
        if self.early is True:
            return True
        if self.early == "never" and self.penalty > 0:
            length = self.limit
        return best / self._norm(length) <= self.finished[-1].score

    def _norm(self, length: int) -> float:
        """What the score of so many new tokens is divided by."""
        return float((length + self.forced) ** self.penalty)

    def row(self, ids: Sequence[int], log_probs: Sequence[float]) -> SequenceState:
        """The text of new tokens."""
        row = SequenceState.begin(self.rules, self.number, 0, self.prompt, self.limit)
        row.resume(ids[:-1], log_probs[:-1])
        row.append(ids[-1], log_probs[-1])
        return row

    def completions(self) -> list[Completion]:
        """The best texts."""
        completions = []
        for sample, (ids, log_probs, score) in enumerate(
            self.finished[: self.rules.config.num_samples]
        ):
            row = self.row(ids, log_probs)
            row.sample = sample
            completions.append(row.completion(score))
        return completions


class Beams:
    """The texts that are followed: as many for each search, search by search. One with a score of
    −∞ only fills a place."""

    def __init__(
        self, rules: CompiledSamplingParams, searches: Sequence[Search], device: torch.device
    ) -> None:
        self.rules, self.searches = rules, list(searches)
        rows = len(self.searches)
        self.scores_PB = torch.zeros(rows, 1, device=device)
        self.ids_RT = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.log_probs_RT = torch.zeros(rows, 0, device=device)

    def texts(self) -> list[Text]:
        each = self.scores_PB.shape[1]
        prompts = [one.prompt for one in self.searches for _ in range(each)]
        return [
            Text([*prompt, *ids], len(prompt))
            for prompt, ids in zip(prompts, self.ids_RT.tolist(), strict=True)
        ]

    def advance(self, candidates: Candidates) -> tuple[list[Search], Tensor]:
        """Go on by a token; returns the searches that are over, and which rows the new ones
        continue."""
        length = self.ids_RT.shape[1] + 1
        order_PB, scores_PB = self._go_on(candidates, length)
        parts_PB = [part_PK.gather(1, order_PB) for part_PK in candidates[1:]]
        over = [
            one.is_over(best, length)
            for one, best in zip(self.searches, scores_PB[:, 0].tolist(), strict=True)
        ]
        finished = [one for one, done in zip(self.searches, over, strict=True) if done]
        if finished:
            going = [p for p, done in enumerate(over) if not done]
            self.searches = [self.searches[p] for p in going]
            scores_PB, *parts_PB = (part_PB[going] for part_PB in (scores_PB, *parts_PB))
        log_probs_R, rows_R, tokens_R = (part_PB.flatten() for part_PB in parts_PB)
        self.scores_PB = scores_PB
        self.ids_RT = torch.cat((self.ids_RT[rows_R], tokens_R[:, None]), 1)
        self.log_probs_RT = torch.cat((self.log_probs_RT[rows_R], log_probs_R[:, None]), 1)
        return finished, rows_R

    def _go_on(self, candidates: Candidates, length: int) -> tuple[Tensor, Tensor]:
        """Keep the candidates that end; returns the ranks (P, B) of those to go on with, and their
        scores."""
        scores_PK, width = candidates.scores_PK, self.rules.config.num_beams
        ended_PK = self._ended(candidates, length)
        if not bool(ended_PK.any()):
            ranks_K = torch.arange(scores_PK.shape[1], device=scores_PK.device)
            return ranks_K.expand_as(scores_PK)[:, :width], scores_PK[:, :width]
        # Only those among the best as many as there are beams count.
        counted_PK = ended_PK & (scores_PK > -math.inf)
        counted_PK[:, width:] = False
        scores = scores_PK[counted_PK].tolist()
        texts = self._texts(candidates, counted_PK)
        for (p, _, ids, log_probs), score in zip(texts, scores, strict=True):
            self.searches[p].keep(ids, log_probs, score)
        order_PB = ended_PK.byte().argsort(dim=1, stable=True)[:, :width]
        return order_PB, scores_PK.masked_fill(ended_PK, -math.inf).gather(1, order_PB)

    def _ended(self, candidates: Candidates, length: int) -> Tensor:
        """Which candidates end their texts, (P, K)."""
        tokens_PK = candidates.tokens_PK
        last_P = torch.tensor([one.limit == length for one in self.searches])
        ended_PK = last_P.to(tokens_PK.device)[:, None].expand_as(tokens_PK)
        for end in self.rules.ends:
            ended_PK = ended_PK | (tokens_PK == end)
        if not self.rules.config.stop:
            return ended_PK
        table = ended_PK.tolist()
        going = [0] * len(table)
        for p, k, ids, log_probs in self._texts(candidates, ~ended_PK):
            if going[p] < self.searches[p].width:
                table[p][k] = self.searches[p].row(ids, log_probs).finish is not None
                going[p] += not table[p][k]
        return torch.tensor(table, device=tokens_PK.device)

    def _texts(
        self, candidates: Candidates, chosen_PK: Tensor
    ) -> Iterator[tuple[int, int, list[int], list[float]]]:
        """The prompt, the rank, the new tokens and their log-probabilities of some candidates, in
        this order."""
        rows_M = candidates.rows_PK[chosen_PK]
        ids_MT, log_probs_MT = (
            torch.cat((before_RT[rows_M], new_PK[chosen_PK][:, None]), 1)
            for before_RT, new_PK in (
                (self.ids_RT, candidates.tokens_PK),
                (self.log_probs_RT, candidates.log_probs_PK),
            )
        )
        places = chosen_PK.nonzero().tolist()
        texts = zip(places, ids_MT.tolist(), log_probs_MT.tolist(), strict=True)
        yield from ((p, k, ids, log_probs) for (p, k), ids, log_probs in texts)


def chunk_maxima(scores_RV: Tensor) -> Tensor:
    """The maxima (R, C) of each ``CHUNK`` scores of a row, the last of them of those that are
    left."""
    V = scores_RV.shape[-1]
    whole = V - V % CHUNK
    maxima_RC = scores_RV[:, :whole].unflatten(1, (-1, CHUNK)).amax(-1)
    if whole == V:
        return maxima_RC
    return torch.cat((maxima_RC, scores_RV[:, whole:].amax(-1, keepdim=True)), 1)


def log_sums(logits_RV: Tensor, maxima_R: Tensor) -> Tensor:
    """The sums log Σ exp of each row (R,), from its maximum."""
    if maxima_R.abs().amax() < WITHIN_EXP:
        return logits_RV.exp().sum(-1).log_()
    return maxima_R + (logits_RV - maxima_R[:, None]).exp_().sum(-1).log_()


def best_continuations(
    scores_PB: Tensor,
    scores_RV: Tensor,
    log_probs_RV: Tensor,
    maxima_RC: Tensor,
    norms_R: Tensor,
    count: int,
) -> Candidates:
    """The best continuations of each prompt's beams, ``count`` or all there are.

    scores_PB: of the beams. scores_RV: the log-probabilities after the strategies. log_probs_RV:
    before them. maxima_RC: see ``chunk_maxima``; the best k are among the k chunks whose maxima are
    the best, and to look through the vocabulary once for these takes a quarter of the time that
    topk does. norms_R: to be taken from scores and log-probabilities.
    """
    (P, B), C, V = scores_PB.shape, maxima_RC.shape[-1], scores_RV.shape[-1]
    W = min(CHUNK, V)
    device = scores_RV.device
    sums_R = scores_PB.flatten() - norms_R
    chunks_PK = (maxima_RC + sums_R[:, None]).view(P, -1).topk(min(count, B * C)).indices
    rows_PK = torch.arange(0, P * B, B, device=device)[:, None] + chunks_PK // C
    begins_PK = chunks_PK % C * CHUNK
    # Whole stretches copy five times as fast as places that are named one by one, so the last one
    # begins in the chunk before.
    stretches_PK = begins_PK.clamp(max=V - W)
    tokens_PKW = stretches_PK[..., None] + torch.arange(W, device=device)
    among_PKW = scores_RV.flatten().unfold(0, W, 1)[rows_PK * V + stretches_PK]
    among_PKW += sums_R[rows_PK][..., None]
    among_PKW.masked_fill_(tokens_PKW < begins_PK[..., None], -math.inf)
    best = among_PKW.flatten(1).topk(min(count, B * V))
    rows_PK = rows_PK.gather(1, best.indices // W)
    tokens_PK = tokens_PKW.flatten(1).gather(1, best.indices)
    log_probs_PK = log_probs_RV[rows_PK, tokens_PK] - norms_R[rows_PK]
    return Candidates(best.values, log_probs_PK, rows_PK, tokens_PK)


@torch.inference_mode()
def search(
    decoder: DecoderRunner,
    prompts: Sequence[tuple[int, Sequence[int], int]],
    rules: CompiledSamplingParams,
) -> Iterator[Search]:
    """Beam search for numbered prompts, each with its limit of new tokens; each search is given
    back when it is over."""
    logits_RV = decoder.prefill(
        [ids for _, ids, _ in prompts], max(limit for _, _, limit in prompts)
    )
    forced = decoder.forced if isinstance(decoder, EncoderDecoderRunner) else 0
    searches = [Search(rules, *prompt, forced) for prompt in prompts]
    beams = Beams(rules, searches, logits_RV.device)
    # As many as can end, and enough besides to go on with.
    count = max(2, 1 + len(rules.ends)) * rules.config.num_beams
    while True:
        # Without preferences few of all log-probabilities are looked at.
        log_probs_RV = scores_RV = logits_RV
        if rules.processors:
            log_probs_RV = logits_RV.log_softmax(-1)
            scores_RV = apply(rules.processors, log_probs_RV, beams.texts())
        maxima_RC = chunk_maxima(scores_RV)
        best_R = maxima_RC.amax(-1)
        check(best_R[beams.scores_PB.flatten() > -math.inf][:, None])
        norms_R = torch.zeros_like(best_R) if rules.processors else log_sums(logits_RV, best_R)
        finished, rows_R = beams.advance(
            best_continuations(beams.scores_PB, scores_RV, log_probs_RV, maxima_RC, norms_R, count)
        )
        yield from finished
        if not beams.searches:
            return
        decoder.select(rows_R)
        logits_RV = decoder.extend(beams.ids_RT[:, -1:])[:, -1]
