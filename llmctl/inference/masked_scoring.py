"""How likely a masked language model finds texts: pseudo-log-likelihood (Salazar et al. 2020).

    PLL(x) = Σₜ log P(xₜ | x with xₜ hidden)

Each scored token is hidden in a copy of the text, and the copies are read together. A word of
several tokens is half given away by its own rest; *within-word* hides that to the right as well
(Kauf and Ivanova 2023, "A Better Way to Do Masked Language Model Scoring").

B copies, T tokens, D width, V vocabulary, S scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.errors import InputError
from llmctl.inference.scoring import (
    QUERIES_AHEAD,
    TOKENS_ELSEWHERE,
    TOKENS_ON_CPU,
    Query,
    QueryScores,
    Score,
    TokenArray,
)
from llmctl.models.heads.gpt_bert import MaskedNextTokenLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tokenizers import Tokenizer


class MaskedScorer:
    """A masked language model as ``llmctl.inference.scoring.Scorer``: the log-probability of each
    token of a continuation is that at its mask, with context and continuation known."""

    def __init__(
        self,
        model: MaskedLM | MaskedNextTokenLM,
        tokenizer: Tokenizer,
        *,
        longest: int | None = None,
        within_word: bool = False,
    ) -> None:
        """longest: tokens that the model was trained to read at once; by default its positions.
        within_word: hide what follows a token in its word as well. Raises InputError if the
        tokenizer has no mask."""
        if "mask" not in tokenizer.special:
            raise InputError(
                "the tokenizer has no token for a mask, by which a masked language model is asked; "
                "use a model that has one"
            )
        self.model = model.eval()
        positions = model.body.longest_text
        self.longest: int | None = positions if longest is None else min(longest, positions)
        self.device = next(model.parameters()).device
        self._mask = tokenizer.special["mask"]
        self._before = len(tokenizer.layout.before)
        self._after = np.array(tokenizer.layout.after, dtype=np.int64)
        self._continues = tokenizer.continuation if within_word else None

    def score(self, queries: Iterable[Query], *, greedy: bool = False) -> Iterator[QueryScores]:
        """Score queries as ``Scorer`` says."""
        stream = iter(queries)
        while block := list(islice(stream, QUERIES_AHEAD)):
            yield from self._score_block(block, greedy)

    def _score_block(self, block: Sequence[Query], greedy: bool) -> Iterator[QueryScores]:
        texts: list[_Text] = []
        cuts = []
        for query in block:
            context, cut = self._fitting(query)
            cuts.append(cut)
            for continuation in query.continuations:
                ids = np.concatenate((context, continuation, self._after))
                texts.append(_Text(ids, len(context), len(continuation)))
        scores = self._score_texts(texts)
        own = iter(scores)
        for query, cut in zip(block, cuts, strict=True):
            found = []
            for log_probs, best in islice(own, len(query.continuations)):
                found.append(Score(log_probs, bool(best.all()) if greedy else None))
            yield QueryScores(found, cut)

    def _fitting(self, query: Query) -> tuple[TokenArray, int]:
        """The context that leaves room for the longest continuation, and the tokens that it lost
        behind those that stand before every text.

        Raises InputError where a continuation is too long by itself.
        """
        assert self.longest is not None
        most = max(map(len, query.continuations))
        room = self.longest - len(self._after) - most
        kept = min(self._before, len(query.context))
        if room < kept:
            raise InputError(
                f"{query.source}: what is to be scored has {most:,} tokens, and the model reads "
                f"{self.longest:,} at once, {kept + len(self._after)} of them special; shorten it"
            )
        cut = max(0, len(query.context) - room)
        context = np.concatenate((query.context[:kept], query.context[kept + cut :]))
        return context.astype(np.int64), cut

    @torch.inference_mode()
    def _score_texts(
        self, texts: Sequence[_Text]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """The log-probability of each scored token of each text, and whether it is the likeliest.

        Copies of one length are read together, so that nothing is padded.
        """
        by_length: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            by_length.setdefault(len(text.ids), []).append(number)
        results = [(np.empty(text.scored), np.empty(text.scored, dtype=bool)) for text in texts]
        at_once = TOKENS_ON_CPU if self.device.type == "cpu" else TOKENS_ELSEWHERE
        for length, numbers in by_length.items():
            owner_S = np.repeat(numbers, [texts[number].scored for number in numbers])
            offset_S = np.concatenate([np.arange(texts[number].scored) for number in numbers])
            ids_ST, place_S, hidden_ST = self._copies(texts, owner_S, offset_S)
            target_S = ids_ST[np.arange(len(ids_ST)), place_S]
            # Two sentences that differ in one word are the same with it hidden.
            keys_ST = np.concatenate((hidden_ST, place_S[:, None]), axis=1)
            order_C, copy_S = _distinct(keys_ST)
            # Targets of a copy stand side by side.
            by_copy_S = np.argsort(copy_S, kind="stable")
            first_C = np.searchsorted(copy_S[by_copy_S], np.arange(len(order_C) + 1))
            rows = max(1, at_once // length)
            for begin in range(0, len(order_C), rows):
                end = min(begin + rows, len(order_C))
                these = by_copy_S[first_C[begin] : first_C[end]]
                log_probs, best = self._score_copies(
                    hidden_ST[order_C[begin:end]],
                    place_S[order_C[begin:end]],
                    copy_S[these] - begin,
                    target_S[these],
                )
                for number, value, is_best in zip(these, log_probs, best, strict=True):
                    own = results[owner_S[number]]
                    own[0][offset_S[number]], own[1][offset_S[number]] = value, is_best
        return results

    def _copies(
        self, texts: Sequence[_Text], owner_S: TokenArray, offset_S: TokenArray
    ) -> tuple[TokenArray, TokenArray, TokenArray]:
        """The copies of texts of one length: as they are, (S, T); the place that is scored of each,
        (S,); and with what is hidden, (S, T)."""
        ids_BT = np.stack([texts[owner].ids for owner in owner_S])
        place_B = np.array([texts[owner].begin for owner in owner_S]) + offset_S
        rows = np.arange(len(ids_BT))
        hidden_BT = ids_BT.copy()
        hidden_BT[rows, place_B] = self._mask
        if self._continues is not None:
            # All behind the token, up to the first that begins a word of its own.
            behind_BT = np.arange(ids_BT.shape[1]) > place_B[:, None]
            ends_BT = np.maximum.accumulate(behind_BT & ~self._continues[ids_BT], axis=1)
            hidden_BT[behind_BT & ~ends_BT] = self._mask
        return ids_BT, place_B, hidden_BT

    def _score_copies(
        self, hidden_BT: TokenArray, place_B: TokenArray, row_S: TokenArray, target_S: TokenArray
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The log-probability of each target at the place of its copy, and whether it is the
        likeliest there, (S,). row_S: the copy of each."""
        logits_BV = self._logits(torch.from_numpy(hidden_BT), torch.from_numpy(place_B)).float()
        row, target = (torch.from_numpy(part).to(self.device) for part in (row_S, target_S))
        log_probs_S = (logits_BV[row, target] - logits_BV.logsumexp(-1)[row]).double().cpu().numpy()
        return log_probs_S, (logits_BV.argmax(-1)[row] == target).cpu().numpy()

    def _logits(self, ids_BT: Tensor, place_B: Tensor) -> Tensor:
        """Logits (B, V) at one place of each copy."""
        ids_BT, place_B = ids_BT.to(self.device), place_B.to(self.device)
        if isinstance(self.model, MaskedNextTokenLM):
            rows = torch.arange(len(ids_BT), device=self.device)
            return self.model.logits(self.model.read(ids_BT)[rows, place_B - 1])
        return self.model.token_logits(self.model.body.hidden_at(ids_BT, place_B))


def _distinct(keys_ST: TokenArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the rows that are equal to none before them, and which of these each row
    is."""
    number_of: dict[bytes, int] = {}
    firsts: list[int] = []
    copy_S = np.empty(len(keys_ST), dtype=np.int64)
    for row, key in enumerate(np.ascontiguousarray(keys_ST)):
        number = number_of.setdefault(key.tobytes(), len(firsts))
        if number == len(firsts):
            firsts.append(row)
        copy_S[row] = number
    return np.array(firsts, dtype=np.int64), copy_S


class _Text:
    """A text, and which of its tokens are scored."""

    def __init__(self, ids: TokenArray, begin: int, scored: int) -> None:
        self.ids, self.begin, self.scored = ids, begin, scored
