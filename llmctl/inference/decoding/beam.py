"""Beam search: the texts of the highest probability, as far as a few at once can find them.

Each step scores every continuation of the beams by the sum of its log-probabilities and goes on
with the best. One that ends is kept apart, by score / length ** length_penalty (Wu et al. 2016,
without coverage), and must be among the best ``num_beams`` continuations to be. Semantics are those
of transformers' beam search, the early stopping too.

P prompts, B beams of all of them, V vocabulary, C chunks of it of W tokens each, K best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmctl.inference.decoder import NextToken
from llmctl.inference.decoding.rows import Completion, Row, Rules, apply, check
from llmctl.inference.decoding.strategies import Text

CHUNK = 96
"""Tokens of the vocabulary that are looked through together. For 64 prompts of 4 beams of 6,000
tokens 100 took 0.43 ms and 200 took 0.49, where topk takes 1.7."""


class Candidates(NamedTuple):
    """Continuations of a search's beams, best first."""

    scores: list[float]
    log_probs: list[float]
    sources: list[int]
    """The beam that each continues."""
    tokens: list[int]


class Beam(NamedTuple):
    """A text that is followed."""

    ids: list[int]
    """The prompt's tokens and the new ones."""
    log_probs: list[float]
    """Of the new tokens under the model itself."""
    score: float
    """The sum of the log-probabilities after the strategies."""


@dataclass(frozen=True)
class Finished:
    """A text that has ended."""

    beam: Beam
    score: float
    """With the length penalty."""


class Search:
    """The beams of one prompt."""

    def __init__(self, rules: Rules, number: int, prompt: Sequence[int], limit: int) -> None:
        self.rules, self.number, self.limit = rules, number, limit
        config = rules.config
        self.width = config.num_beams
        self.penalty = 1.0 if config.length_penalty is None else config.length_penalty
        self.early: bool | Literal["never"] = config.early_stopping or False
        self.start = len(prompt)
        self.beams = [Beam(list(prompt), [], 0.0)]
        self.finished: list[Finished] = []
        """The best so far, best first."""
        self.over = False

    def texts(self) -> list[Text]:
        return [Text(beam.ids, self.start) for beam in self.beams]

    def advance(self, candidates: Candidates) -> list[int]:
        """Go on by a token; returns which of the beams each new one continues."""
        beams, width = self.beams, self.width
        ends, stops = self.rules.ends, bool(self.rules.config.stop)
        last = len(beams[0].ids) + 1 - self.start == self.limit
        going: list[Beam] = []
        sources = []
        for rank, (score, log_prob, source, token) in enumerate(zip(*candidates, strict=True)):
            if score == -math.inf or len(going) == width:
                break
            ids, log_probs, _ = beams[source]
            beam = Beam([*ids, token], [*log_probs, log_prob], score)
            if last or token in ends or (stops and self._row(beam).finish is not None):
                if rank < width:
                    self._keep(beam)
            else:
                going.append(beam)
                sources.append(source)
        self.beams = going
        self.over = not going or self._is_enough()
        return sources

    def _row(self, beam: Beam) -> Row:
        row = Row.begin(self.rules, self.number, 0, beam.ids[: self.start], self.limit)
        for token, log_prob in zip(beam.ids[self.start :], beam.log_probs, strict=True):
            row.take(token, log_prob)
        return row

    def _keep(self, beam: Beam) -> None:
        new = len(beam.ids) - self.start
        self.finished.append(Finished(beam, beam.score / new**self.penalty))
        self.finished.sort(key=lambda finished: -finished.score)
        del self.finished[self.width :]

    def _is_enough(self) -> bool:
        """Whether no beam is followed further."""
        if len(self.finished) < self.width:
            return False
        if self.early is True:
            return True
        length = len(self.beams[0].ids) - self.start
        if self.early == "never" and self.penalty > 0:
            length = self.limit
        return self.beams[0].score / length**self.penalty <= self.finished[-1].score

    def completions(self) -> list[Completion]:
        """The best texts."""
        completions = []
        for sample, finished in enumerate(self.finished[: self.rules.config.num_samples]):
            row = self._row(finished.beam)
            row.sample = sample
            completions.append(row.completion(finished.score))
        return completions


def chunk_maxima(scores_BV: Tensor) -> Tensor:
    """The maxima (B, C) of each ``CHUNK`` scores of a row, the last of them of those that are
    left."""
    V = scores_BV.shape[-1]
    whole = V - V % CHUNK
    maxima_BC = scores_BV[:, :whole].unflatten(1, (-1, CHUNK)).amax(-1)
    if whole == V:
        return maxima_BC
    return torch.cat((maxima_BC, scores_BV[:, whole:].amax(-1, keepdim=True)), 1)


def best_continuations(
    searches: Sequence[Search],
    scores_BV: Tensor,
    log_probs_BV: Tensor,
    maxima_BC: Tensor,
    norms_B: Tensor,
) -> Iterator[Candidates]:
    """For each search the best continuations of its beams: as many as can end, and enough besides
    to go on with.

    scores_BV: the log-probabilities after the strategies. log_probs_BV: before them. maxima_BC: see
    ``chunk_maxima``; the best k are among the k chunks whose maxima are the best, and to look
    through the vocabulary once for these takes a quarter of the time that topk does. norms_B: to be
    taken from scores and log-probabilities.
    """
    C, V = maxima_BC.shape[-1], scores_BV.shape[-1]
    device = scores_BV.device
    scores_B = torch.tensor([beam.score for one in searches for beam in one.beams], device=device)
    sums_B = scores_B - norms_B
    maxima_BC = maxima_BC + sums_B[:, None]
    places_W = torch.arange(CHUNK, device=device)
    first = 0
    # Prompts with as many beams, mostly all, are looked through together.
    for beams, group in groupby(searches, lambda one: len(one.beams)):
        like = list(group)
        P = len(like)
        count = min(max(2, 1 + len(like[0].rules.ends)) * like[0].width, beams * V)
        here = slice(first, first := first + beams * P)
        chunks_PK = maxima_BC[here].view(P, -1).topk(min(count, beams * C)).indices
        firsts_P1 = torch.arange(here.start, here.stop, beams, device=device)[:, None]
        rows_PK1 = (firsts_P1 + chunks_PK // C)[..., None]
        tokens_PKW = (chunks_PK % C * CHUNK)[..., None] + places_W
        behind_PKW = tokens_PKW >= V
        tokens_PKW.clamp_(max=V - 1)
        among_PKW = scores_BV[rows_PK1, tokens_PKW] + sums_B[rows_PK1]
        among_PKW.masked_fill_(behind_PKW, -math.inf)
        best = among_PKW.flatten(1).topk(count)
        rows_PK = rows_PK1[..., 0].gather(1, best.indices // CHUNK)
        tokens_PK = tokens_PKW.flatten(1).gather(1, best.indices)
        plain_PK = log_probs_BV[rows_PK, tokens_PK] - norms_B[rows_PK]
        sources_PK = rows_PK - firsts_P1
        columns = (part.tolist() for part in (best.values, plain_PK, sources_PK, tokens_PK))
        yield from map(Candidates, *columns)


@torch.inference_mode()
def search(
    decoder: NextToken, prompts: Sequence[tuple[int, Sequence[int], int]], rules: Rules
) -> Iterator[Search]:
    """Beam search for numbered prompts, each with its limit of new tokens; each search is given
    back when it is over."""
    searches = [Search(rules, number, ids, limit) for number, ids, limit in prompts]
    logits_BV = decoder.prefill(
        [ids for _, ids, _ in prompts], max(limit for _, _, limit in prompts)
    )
    while True:
        if rules.preferences:
            log_probs_BV = logits_BV.log_softmax(-1)
            texts = [text for one in searches for text in one.texts()]
            scores_BV = apply(rules.preferences, log_probs_BV, texts)
            maxima_BC = chunk_maxima(scores_BV)
            norms_B = torch.zeros(len(scores_BV), device=scores_BV.device)
        else:  # few of all log-probabilities are looked at
            log_probs_BV = scores_BV = logits_BV
            maxima_BC = chunk_maxima(logits_BV)
            most_B1 = maxima_BC.amax(-1, keepdim=True)
            norms_B = most_B1[:, 0] + (logits_BV - most_B1).exp_().sum(-1).log_()
        check(maxima_BC)
        kept: list[int] = []
        first = 0
        ahead = best_continuations(searches, scores_BV, log_probs_BV, maxima_BC, norms_B)
        for one, candidates in zip(searches, ahead, strict=True):
            stop = first + len(one.beams)
            sources = one.advance(candidates)
            if one.over:
                yield one
            else:
                kept += [first + source for source in sources]
            first = stop
        searches = [one for one in searches if not one.over]
        if not searches:
            return
        decoder.select(torch.tensor(kept, device=logits_BV.device))
        last_B1 = torch.tensor(
            [beam.ids[-1:] for one in searches for beam in one.beams], device=logits_BV.device
        )
        logits_BV = decoder.extend(last_B1)[:, -1]
