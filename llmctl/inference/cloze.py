"""How likely a masked language model finds words at a place of a text (Schick and Schütze 2021).

A word of one piece has one mask there, and its score is the log-probability of the piece. A word of
k pieces has k masks, which are filled one after another, each time the one that the model is surest
of; the score is the sum of these log-probabilities (Schick and Schütze 2021b, "It's Not Just Size
That Matters", eq. 3):

    q(t₁ … tₖ | z) = q(tⱼ | z) · q(the others | z with tⱼ at j),   j = argmax over j of q(tⱼ | z)

B rows, T tokens in a row, D width, V vocabulary, M masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.tables.encoded import pad_token, truncate_longest_first
from llmctl.errors import LOGITS_NOT_FINITE, InputError
from llmctl.inference.scoring import QUERIES_AHEAD, TOKENS_ELSEWHERE, TOKENS_ON_CPU, TokenArray
from llmctl.inference.templates import MASK_PLACE
from llmctl.models.heads.cross_entropy import ROWS_ELSEWHERE, ROWS_ON_CPU
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tokenizers import Tokenizer

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class ClozeQuery:
    """A text with a place, and the words that may stand there."""

    before: TokenArray
    after: TokenArray
    """Ids before and behind the place, with the special tokens around the text."""
    words: Sequence[TokenArray]
    cut: int = 0
    """Tokens that the text lost to fit."""

    @property
    def longest(self) -> int:
        """Pieces of the longest word."""
        return max(map(len, self.words))


def encode_cloze(
    tokenizer: Tokenizer,
    prompt: str,
    words: Sequence[str],
    *,
    max_length: int,
    source: str = "a text",
) -> ClozeQuery:
    """A prompt with ``MASK_PLACE`` in it, and words, as ids. A prompt that is too long loses what
    is farthest from the place, on the longer side first.

    Raises InputError for a word without pieces of its own, and where two words have the same.
    """
    head, _, tail = prompt.partition(MASK_PLACE)
    encoded = encode_words(tokenizer, words, spaced=head.endswith(" "), source=source)
    # A mask takes the space before it, as the word does that it stands for.
    before, after = tokenizer.encode(head.removesuffix(" ")), tokenizer.encode(tail)
    layout, longest = tokenizer.layout, max(map(len, encoded))
    room = max_length - len(layout.before) - len(layout.after) - longest
    if room < 0:
        raise InputError(
            f"{source}: a word of {longest} pieces doesn't fit into the {max_length} tokens that "
            "the model reads; take shorter words"
        )
    left, right = truncate_longest_first(len(before), len(after), room)
    return ClozeQuery(
        np.array([*layout.before, *before[len(before) - left :]], dtype=np.int64),
        np.array([*after[:right], *layout.after], dtype=np.int64),
        encoded,
        len(before) + len(after) - left - right,
    )


def encode_words(
    tokenizer: Tokenizer, words: Sequence[str], *, spaced: bool, source: str
) -> list[TokenArray]:
    """Words as the pieces that they have at a place. spaced: behind a space.

    Raises InputError for a word that the vocabulary doesn't know, and for two alike.
    """
    # Elsewhere than in byte-level pieces a space before a word says nothing.
    lead = " " if spaced and tokenizer.kind == "bpe" else ""
    encoded = [np.asarray(tokenizer.encode(lead + word), dtype=np.int64) for word in words]
    unknown = tokenizer.special.get("unk")
    seen: dict[tuple[int, ...], str] = {}
    if repeated := [word for number, word in enumerate(words) if word in words[:number]]:
        raise InputError(
            f"{source}: the word {repeated[0]!r} stands for two labels, which can't be told apart; "
            "write others with --labels or in [verbalizer]"
        )
    for word, ids in zip(words, encoded, strict=True):
        if not len(ids) or unknown in ids.tolist():
            raise InputError(
                f"{source}: the label's word {word!r} is not in the model's vocabulary, nor made "
                "of its pieces; write another with --labels or in [verbalizer]"
            )
        other = seen.setdefault(tuple(ids.tolist()), word)
        if other != word:
            raise InputError(
                f"{source}: the words {other!r} and {word!r} are the same to the model's "
                "tokenizer; write others with --labels or in [verbalizer]"
            )
    return encoded


@dataclass(frozen=True)
class _MaskedRow:
    """A text with masks that are still to be read."""

    query: int
    ids: TokenArray
    masks: tuple[int, ...]
    """Their places."""
    words: tuple[int, ...]
    """Numbers of the words that are read there; one alone, once a mask has its piece."""


class ClozeScorer:
    """A masked language model that says how likely words are at a place."""

    def __init__(self, model: MaskedLM, tokenizer: Tokenizer) -> None:
        """Raises InputError if the tokenizer has no token for a mask."""
        if "mask" not in tokenizer.special:
            raise InputError(
                "the tokenizer has no token for a mask, at which a label's word could be read; "
                "take a model with one"
            )
        self.model, self._mask, self._pad = (
            model.eval(),
            tokenizer.special["mask"],
            pad_token(tokenizer),
        )
        self.device = model.output_weight.device
        on_cpu = self.device.type == "cpu"
        self._tokens = TOKENS_ON_CPU if on_cpu else TOKENS_ELSEWHERE
        self._rows = ROWS_ON_CPU if on_cpu else ROWS_ELSEWHERE

    def score(self, queries: Iterable[ClozeQuery]) -> Iterator[list[Scores]]:
        """The log-probabilities of each word's pieces, in the order in which they were filled in,
        for each query in order; read ahead in blocks."""
        stream = iter(queries)
        while block := list(islice(stream, QUERIES_AHEAD)):
            yield from self._score_block(block)

    @torch.inference_mode()
    def _score_block(self, block: Sequence[ClozeQuery]) -> list[list[Scores]]:
        found: list[list[list[float]]] = [[[] for _ in query.words] for query in block]
        todo = [row for number, query in enumerate(block) for row in self._first(number, query)]
        while todo:
            further: list[_MaskedRow] = []
            for part in _batches(todo, self._tokens):
                for row, logs_MV in zip(part, self._log_probs(part), strict=True):
                    query = block[row.query]
                    for word in row.words:
                        score, rest = _fill(row, word, query, logs_MV)
                        found[row.query][word].append(score)
                        further += [] if rest is None else [rest]
            todo = further
        return [[np.asarray(scores) for scores in words] for words in found]

    def _first(self, number: int, query: ClozeQuery) -> Iterator[_MaskedRow]:
        """A row for each number of pieces that a query's words have."""
        begin = len(query.before)
        for count in sorted({len(word) for word in query.words}):
            words = [place for place, word in enumerate(query.words) if len(word) == count]
            ids = np.concatenate([query.before, np.full(count, self._mask), query.after])
            yield _MaskedRow(number, ids, tuple(range(begin, begin + count)), tuple(words))

    def _log_probs(self, rows: Sequence[_MaskedRow]) -> Iterator[Tensor]:
        """The log-probabilities (M, V) at the masks of each row."""
        T = max(len(row.ids) for row in rows)
        ids_BT = np.full((len(rows), T), self._pad, dtype=np.int64)
        mask_BT = np.zeros((len(rows), T), dtype=bool)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row.ids)] = row.ids
            mask_BT[number, : len(row.ids)] = True
        hidden_BTD = self.model.body(
            torch.from_numpy(ids_BT).to(self.device),
            None,
            None if mask_BT.all() else torch.from_numpy(mask_BT).to(self.device),
        )
        places_M = [number * T + mask for number, row in enumerate(rows) for mask in row.masks]
        hidden_MD = hidden_BTD.flatten(0, 1)[torch.tensor(places_M, device=self.device)]
        logits = [self.model.token_logits(part_MD) for part_MD in hidden_MD.split(self._rows)]
        logits_MV = torch.cat(logits).float()
        if not torch.isfinite(logits_MV).all():
            raise InputError(LOGITS_NOT_FINITE)
        yield from logits_MV.log_softmax(-1).cpu().split([len(row.masks) for row in rows])


def _fill(
    row: _MaskedRow, word: int, query: ClozeQuery, logs_MV: Tensor
) -> tuple[float, _MaskedRow | None]:
    """The log-probability of the piece that the model is surest of, and what is left to read with
    it in its place, if anything."""
    begin = len(query.before)
    pieces_M = [int(query.words[word][mask - begin]) for mask in row.masks]
    logs_M = logs_MV[torch.arange(len(pieces_M)), pieces_M].double()
    best = int(logs_M.argmax())
    if len(row.masks) == 1:
        return float(logs_M[best]), None
    ids = row.ids.copy()
    ids[row.masks[best]] = pieces_M[best]
    left = row.masks[:best] + row.masks[best + 1 :]
    return float(logs_M[best]), _MaskedRow(row.query, ids, left, (word,))


def _batches(rows: Sequence[_MaskedRow], at_once: int) -> Iterator[list[_MaskedRow]]:
    """Rows of about the same length together, as many as make ``at_once`` tokens."""
    batch: list[_MaskedRow] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if batch and (len(batch) + 1) * len(row.ids) > at_once:
            yield batch
            batch = []
        batch.append(row)
    yield batch
