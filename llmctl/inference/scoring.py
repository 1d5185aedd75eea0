"""How likely a language model finds the continuations of a context.

    log P(c₁ … cₘ | x) = Σᵢ log P(cᵢ | x, c₁ … cᵢ₋₁)

The continuations of one context lie behind it in one row, each seeing the context and itself, so a
question is read once for all its choices. Rows are sorted by length and padded on the right, which
a causal model can't see. Logits are made for places that predict a scored token, a few at a time.

B rows, T tokens in a row, D width, V vocabulary, P places with logits, R of them at a time,
S scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PlainValidator
from torch import Tensor

from llmctl.errors import InputError
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.cross_entropy import ROWS_ELSEWHERE, ROWS_ON_CPU
from llmctl.tokenizers import Tokenizer

TOKENS_ON_CPU = 2048
"""Tokens of a batch, padding counted. Fewer make smaller products and more leave the cache; from
1,024 to 4,096 it is the same within 10 %, measured 384 wide."""
TOKENS_ELSEWHERE = 1 << 15
"""An accelerator has more at work at once."""
QUERIES_AHEAD = 512
"""Queries read before the first answer, and sorted by length among themselves."""

TokenArray = NDArray[np.int64]


@dataclass(frozen=True)
class Query:
    """A context, of one token at least, and what may follow it, likewise."""

    context: TokenArray
    continuations: Sequence[TokenArray]
    source: str = "a text"
    """Where it is from, for messages."""


Numbers = Annotated[NDArray[np.float64], PlainValidator(partial(np.asarray, dtype=np.float64))]
"""An array that another process's answer may hold, too, where it arrives as a list."""


@dataclass(frozen=True)
class Score:
    """What a model makes of a continuation."""

    log_probs: Numbers
    """The log-probability of each of its tokens, in nats."""
    greedy: bool | None
    """Whether each token is the likeliest at its place, as greedy decoding would write it; None
    where it wasn't asked."""

    @property
    def total(self) -> float:
        return float(self.log_probs.sum())


@dataclass(frozen=True)
class QueryScores:
    """The scores of a query's continuations."""

    scores: list[Score]
    cut: int
    """Tokens that the context lost on its left, for the longest continuation to fit."""


class Scorer(Protocol):
    """A language model that says how likely texts are."""

    longest: int | None
    """Tokens that it reads at once; None: any number."""

    def score(self, queries: Iterable[Query], *, greedy: bool = False) -> Iterator[QueryScores]:
        """An answer to each query, in order; read ahead in blocks.

        Raises InputError for a continuation that the model can't read at once.
        """
        ...


def truncate_context(query: Query, longest: int | None) -> tuple[Query, int]:
    """A query whose context leaves room for its longest continuation, and the tokens that it lost.

    A model reads all but the last token of what it scores. Raises InputError where even one token
    of context is too many.
    """
    if longest is None:
        return query, 0
    most = max(map(len, query.continuations))
    if most > longest:
        raise InputError(
            f"{query.source}: what is to be scored has {most:,} tokens, and the model reads "
            f"{longest:,} at once; shorten it"
        )
    cut = max(0, len(query.context) + most - 1 - longest)
    return Query(query.context[cut:], query.continuations, query.source), cut


def encode_query(
    tokenizer: Tokenizer, context: str, continuations: Sequence[str], *, source: str = "a text"
) -> Query:
    """Texts as a query: what the tokenizer puts before a text, then context and continuation
    encoded as one. A context without any token is the start token.

    A piece that reaches from the context into a continuation is scored with it. Raises InputError
    for a continuation without tokens.
    """
    encoded: list[TokenArray] = []
    shared = []
    for text in continuations:
        pieces, begins = tokenizer.encode_offsets(context + text)
        first = int(np.searchsorted(begins, len(context)))
        # Spaces that a tokenizer leaves out belong to no piece.
        gap = (context + text)[len(context) : int(begins[first]) if first < len(pieces) else None]
        if first and gap.strip():
            first -= 1
        encoded.append(pieces.astype(np.int64))
        shared.append(first)
    length = min(shared)
    for ids in encoded[1:]:
        differs = np.flatnonzero(ids[:length] != encoded[0][:length])
        length = int(differs[0]) if len(differs) else length
    for text, ids in zip(continuations, encoded, strict=True):
        if len(ids) <= length:
            raise InputError(f"{source}: {text!r} has no tokens to score; write a word or more")
    before = list(tokenizer.layout.before)
    if not before and not length:
        before = [start_token(tokenizer)]
    return Query(
        np.concatenate((np.array(before, dtype=np.int64), encoded[0][:length])),
        [ids[length:] for ids in encoded],
        source,
    )


def start_token(tokenizer: Tokenizer) -> int:
    """The token before a text. Raises InputError if the tokenizer has none."""
    if "bos" not in tokenizer.special:
        raise InputError(
            "the tokenizer has no token for a document's start, from which texts are scored; use "
            "a model that has one"
        )
    return tokenizer.special["bos"]


class CausalScorer:
    """A neural language model that says how likely texts are."""

    def __init__(
        self,
        model: CausalLM,
        *,
        longest: int | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """longest: tokens that the model was trained to read at once; by default its positions.
        head: hidden states to logits, where it isn't the model's own; see ``prepare``."""
        self.model = model.eval()
        self.head = head
        positions = model.body.longest_text
        self.longest: int | None = positions if longest is None else min(longest, positions)
        self.device = model.body.like_states().device

    def score(self, queries: Iterable[Query], *, greedy: bool = False) -> Iterator[QueryScores]:
        """Score queries as ``Scorer`` says."""
        stream = iter(queries)
        while block := list(islice(stream, QUERIES_AHEAD)):
            yield from self._score_block(
                [truncate_context(query, self.longest) for query in block], greedy
            )

    @torch.inference_mode()
    def _score_block(self, block: Sequence[tuple[Query, int]], greedy: bool) -> list[QueryScores]:
        rows: list[_Row] = []
        slots = 0
        for query, _ in block:
            rows += _rows(query, slots, self.longest)
            slots += sum(map(len, query.continuations))
        log_probs, best = np.empty(slots), np.empty(slots, dtype=bool)
        at_once = TOKENS_ON_CPU if self.device.type == "cpu" else TOKENS_ELSEWHERE
        for batch in _batches(rows, at_once):
            scored_slots = np.concatenate([slot for row in batch for slot in row.slots])
            log_probs[scored_slots], best[scored_slots] = self._score_rows(batch, greedy)
        answers, slot = [], 0
        for query, cut in block:
            scores = []
            for continuation in query.continuations:
                part = slice(slot, slot + len(continuation))
                scores.append(Score(log_probs[part], bool(best[part].all()) if greedy else None))
                slot = part.stop
            answers.append(QueryScores(scores, cut))
        return answers

    def _score_rows(self, rows: Sequence[_Row], greedy: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Log-probabilities of the rows' scored tokens, (S,), and which are the likeliest."""
        hidden_BTD = self._hidden(rows)
        T = hidden_BTD.shape[1]
        places_S = np.concatenate(
            [number * T + place for number, row in enumerate(rows) for place in row.places]
        )
        targets_S = np.concatenate([target for row in rows for target in row.targets])
        # Continuations of a context begin at one place: its logits are made once.
        places_P, index_S = np.unique(places_S, return_inverse=True)
        order_S = np.argsort(index_S, kind="stable")
        hidden_PD = hidden_BTD.flatten(0, 1)[torch.from_numpy(places_P).to(self.device)]
        log_probs_S, best_S = np.empty(len(places_S)), np.zeros(len(places_S), dtype=bool)
        at_once = ROWS_ON_CPU if self.device.type == "cpu" else ROWS_ELSEWHERE
        for begin in range(0, len(places_P), at_once):
            logits_RV = self._logits(hidden_PD[begin : begin + at_once])
            first, last = np.searchsorted(index_S[order_S], [begin, begin + at_once])
            these = order_S[first:last]
            row = torch.from_numpy(index_S[these] - begin).to(self.device)
            target = torch.from_numpy(targets_S[these]).to(self.device)
            log_sum_R = logits_RV.logsumexp(-1)
            log_probs_S[these] = (logits_RV[row, target] - log_sum_R[row]).double().cpu().numpy()
            if greedy:
                best_S[these] = (logits_RV.argmax(-1)[row] == target).cpu().numpy()
        return log_probs_S, best_S

    def _logits(self, hidden_RD: Tensor) -> Tensor:
        if self.head is None:
            return self.model.logits(hidden_RD)
        return self.model.capped(self.head(hidden_RD))

    def _hidden(self, rows: Sequence[_Row]) -> Tensor:
        B, T = len(rows), max(row.length for row in rows)
        ids_BT = np.zeros((B, T), dtype=np.int64)
        parts_BT = np.full((B, T), -1)
        positions_BT = np.zeros((B, T), dtype=np.int64)
        for number, row in enumerate(rows):
            ids_BT[number, : row.length] = np.concatenate(row.ids)
            parts_BT[number, : row.length] = np.concatenate(row.parts)
            positions_BT[number, : row.length] = np.concatenate(row.positions)
        input_ids_BT = torch.from_numpy(ids_BT).to(self.device)
        if all(row.branches < 2 for row in rows):
            return self.model.body(input_ids_BT)
        part_BT = torch.from_numpy(parts_BT).to(self.device)
        same_BTT = part_BT[:, :, None] == part_BT[:, None, :]
        allowed_BTT = (same_BTT | (part_BT == 0)[:, None, :]).tril_()
        return self.model.body(
            input_ids_BT, allowed_BTT, torch.from_numpy(positions_BT).to(self.device)
        )


class _Row:
    """A context with continuations behind it, of each all but the last token."""

    def __init__(self, context: TokenArray) -> None:
        self.context, self.length = len(context), len(context)
        self.branches = 0
        """Continuations of two tokens or more, which take places of their own."""
        self.ids = [context]
        self.parts = [np.zeros(self.length, dtype=np.int64)]
        """0: the context; then the number of the branch."""
        self.positions = [np.arange(self.length)]
        self.places: list[TokenArray] = []
        """Places of the tokens that predict each scored one."""
        self.targets: list[TokenArray] = []
        """The scored tokens."""
        self.slots: list[TokenArray] = []
        """Where the score of each token goes."""

    def add(self, continuation: TokenArray, slot: int) -> None:
        read = np.arange(len(continuation) - 1)
        self.places.append(np.concatenate(([self.context - 1], self.length + read)))
        self.targets.append(continuation)
        self.slots.append(slot + np.arange(len(continuation)))
        if len(read):
            self.branches += 1
            self.ids.append(continuation[:-1])
            self.parts.append(np.full(len(read), self.branches))
            self.positions.append(self.context + read)
            self.length += len(read)


def _rows(query: Query, slot: int, longest: int | None) -> Iterator[_Row]:
    """A query in one row, or in several where the continuations together are too long."""
    row = _Row(query.context)
    for continuation in query.continuations:
        length = row.length + len(continuation) - 1
        if row.slots and longest is not None and length > longest:
            yield row
            row = _Row(query.context)
        row.add(continuation, slot)
        slot += len(continuation)
    yield row


def _batches(rows: list[_Row], at_once: int) -> Iterator[list[_Row]]:
    """Rows of about the same length together, as many as make ``at_once`` tokens."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: row.length):
        if batch and (len(batch) + 1) * row.length > at_once:
            yield batch
            batch = []
        batch.append(row)
    yield batch
