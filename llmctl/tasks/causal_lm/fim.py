"""Fill-in-the-middle (Bavarian et al. 2022): a decoder learns to write between two texts because a
share of its training text is laid out anew, the middle last.

    PSM: <PRE> prefix <SUF> suffix <MID> middle <EOT>
    SPM: <PRE> <SUF> suffix <MID> prefix middle <EOT>               (as they train both together)

Half of what is laid out anew is one, half the other. The end of a document stands for <EOT>, as in
StarCoder and Qwen's coders.

Pieces are moved after rows are cut, within the part of a document that a row holds: their
context level, which they find the better, as a document cut afterwards gives rows that have lost
their prefix or their middle. Cuts fall between any two characters, not between tokens, as who asks
for a middle stops anywhere in a word: what lies around a cut is encoded anew, from a word's start
to the next, which gives what encoding the parts by themselves gives.

A row grows by the tokens that are put in, and is cut to its length again: at the end of its last
part or, where that was laid out anew, at the end of its suffix, as if the row ended there.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from llmctl.data.random import key_of, uniform
from llmctl.data.shards.windows import Rows
from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.additional import FIM_ROLES

SPM_SHARE = 0.5
LEAST_TOKENS = 4
"""A shorter part stays as it is: there is nothing to divide."""
_WORD_START = re.compile(rb"(?<=[^\s]) (?=[A-Za-z])")
"""A space behind something else and before a letter: every pattern that cuts text cuts here."""
_PROBE = ("one", " two", " three")

Ids = NDArray[np.int64]


def fim_tokens(tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    """The tokens before prefix, suffix and middle; None where the tokenizer lacks one."""
    if not all(role in tokenizer.special for role in FIM_ROLES):
        return None
    prefix, suffix, middle = (tokenizer.special[role] for role in FIM_ROLES)
    return prefix, suffix, middle


@dataclass
class _Part:
    """The tokens of one document that a row holds."""

    start: Ids
    """The token before the document, where it begins here."""
    body: Ids
    end: Ids
    """The token behind the document, where it ends here."""
    begin: int
    """The column of its first token as the row says it: below 0 where it began before."""
    pieces: list[Ids] | None = None
    """Prefix, middle and suffix, where it is laid out anew."""
    spm: bool = False
    middle_end: Ids | None = None
    """What stands behind the middle."""

    def __len__(self) -> int:
        if self.pieces is None:
            return len(self.start) + len(self.body) + len(self.end)
        assert self.middle_end is not None
        marks = len(FIM_ROLES)
        return len(self.start) + marks + sum(map(len, self.pieces)) + len(self.middle_end)

    def parts(self, before_prefix: Ids, before_suffix: Ids, before_middle: Ids) -> list[Ids]:
        """The tokens as they are laid out."""
        if self.pieces is None:
            return [self.start, self.body, self.end]
        prefix, middle, suffix = self.pieces
        assert self.middle_end is not None
        if self.spm:
            marked = [before_prefix, before_suffix, suffix, before_middle, prefix, middle]
        else:
            marked = [before_prefix, prefix, before_suffix, suffix, before_middle, middle]
        return [self.start, *marked, self.middle_end]

    def shorten(self, tokens: int, least: int) -> None:
        """Lose so many tokens, or as many as leave ``least``: at the end or, where it is laid out
        anew, at the suffix's end and the prefix's start. Where these are too short it is laid out
        as it was."""
        if self.pieces is not None:
            prefix, middle, suffix = self.pieces
            of_suffix = min(tokens, len(suffix))
            of_prefix = tokens - of_suffix
            if of_prefix <= len(prefix):
                self.pieces = [prefix[of_prefix:], middle, suffix[: len(suffix) - of_suffix]]
                return
            longer = len(self)
            self.pieces = None
            tokens -= longer - len(self)
        whole = np.concatenate([self.start, self.body, self.end])
        kept = min(len(whole), max(least, len(whole) - tokens))
        self.start, self.body = self.start[:kept], whole[len(self.start) : kept]
        self.end = whole[:0]


class FillInTheMiddle:
    """Lays parts of rows out anew."""

    def __init__(self, tokenizer: Tokenizer, *, share: float, seed: int) -> None:
        """share: of the parts of documents. Raises InputError where the tokenizer lacks the tokens
        that mark the three pieces, or that of a document's end."""
        tokens = fim_tokens(tokenizer)
        if tokens is None:
            raise InputError(
                "objective.fim: the shards' tokenizer has no tokens for prefix, suffix and middle; "
                "make shards with them: llmctl tokenize … --fim"
            )
        self._prefix, self._suffix, self._middle = (np.array([token]) for token in tokens)
        self._start, self._end = tokenizer.special["bos"], tokenizer.special["eos"]
        self._share, self._key = share, key_of(seed, "fim")
        self._divide = Divider(tokenizer)

    def __call__(self, rows: Rows) -> Rows:
        """Rows of the same shape; a pure function of the seed, their positions and their tokens."""
        changes = rows.begins[:, 1:] != rows.begins[:, :-1]
        most = 1 + int(changes.sum(1).max(initial=0))
        draws = uniform(
            self._key, rows.positions[:, None, None], np.arange(most)[:, None], np.arange(4)
        )
        ids, begins, known = rows.ids.copy(), rows.begins.copy(), rows.known.copy()
        for row in np.flatnonzero((draws[:, :, 0] < self._share).any(1)).tolist():
            cuts = [0, *(np.flatnonzero(changes[row]) + 1).tolist(), rows.ids.shape[1]]
            parts = [
                self._part(rows.ids[row, first:last], int(rows.begins[row, first]))
                for first, last in pairwise(cuts)
            ]
            known[row] = self._lay_out(parts, draws[row], ids[row], begins[row])
        return Rows(ids, begins, known, rows.positions)

    def counts(self, rows: Rows) -> NDArray[np.int64]:
        """Parts of documents in rows when they are made, how many of these are laid out anew, and
        how many with the suffix first."""
        made = self(rows)
        marked = made.ids == self._prefix[0]
        suffix_first = marked[:, :-1] & (made.ids[:, 1:] == self._suffix[0])
        begins = made.begins[:, 1:] != made.begins[:, :-1]
        begins &= np.arange(1, made.ids.shape[1]) < made.known[:, None]
        return np.array([len(made.ids) + begins.sum(), marked.sum(), suffix_first.sum()])

    def _part(self, ids: Ids, begin: int) -> _Part:
        first = int(begin >= 0)
        ended = self._start != self._end and ids[-1] == self._end and len(ids) > first
        stop = len(ids) - int(ended)
        return _Part(ids[:first], ids[first:stop], ids[stop:], begin)

    def _lay_out(
        self, parts: list[_Part], draws: NDArray[np.float64], ids: Ids, begins: Ids
    ) -> int:
        """Write a row's parts, those laid out anew of which the draws say so; returns how many
        tokens there are."""
        end, shared = np.array([self._end]), self._start == self._end
        for number, (part, draw) in enumerate(zip(parts, draws.tolist(), strict=False)):
            if draw[0] < self._share and len(part.body) >= LEAST_TOKENS:
                part.spm = draw[1] < SPM_SHARE
                part.pieces = self._divide(part.body, draw[2], draw[3])
                # Where a document's end is the next one's start, that stands there already.
                part.middle_end = end[: int(not shared or number == len(parts) - 1)]
        while (overflow := sum(map(len, parts)) - len(ids)) > 0:
            # The next document's start stays, where it ends the part before.
            parts[-1].shorten(overflow, int(shared and len(parts) > 1))
            if sum(map(len, parts)) > len(ids):
                parts.pop()
                parts[-1].middle_end = end
        place = 0
        for part in parts:
            laid_out = np.concatenate(part.parts(self._prefix, self._suffix, self._middle))
            stop = place + len(laid_out)
            ids[place:stop] = laid_out
            begins[place:stop] = part.begin if part.begin < 0 else place
            place = stop
        ids[place:], begins[place:] = self._end, place
        return place


class Divider:
    """Divides text that is given as tokens at two of its characters, each part encoded as it would
    be by itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sizes = tokenizer.token_bytes
        *parts, whole = map(tokenizer.encode, (*_PROBE, "".join(_PROBE)))
        # Not where encoding puts a space before every text: parts would get one each.
        self._encodes = tokenizer.kind != "characters" and [*chain(*parts)] == whole
        within = [tokenizer.decode_bytes([n])[:1] for n in range(tokenizer.vocab_size)]
        self._in_character = np.array(
            [piece != b"" and piece[0] & 0xC0 == 0x80 for piece in within]
        )

    def __call__(self, ids: Ids, first: float, second: float) -> list[Ids]:
        """Prefix, middle and suffix. first, second: from [0, 1), where the text is cut; cuts fall
        between tokens where parts can't be encoded by themselves."""
        low, high = sorted((first, second))
        if self._encodes:
            data = self._tokenizer.decode_bytes(ids.tolist())
            ends = np.cumsum(self._sizes[ids])
            if len(data) == ends[-1]:
                try:
                    return self._by_characters(ids, data, ends, low, high)
                except UnicodeDecodeError:  # the row begins or ends within a character
                    pass
        cuts = []
        for draw in (low, high):
            cut = int(draw * (len(ids) + 1))
            while 0 < cut < len(ids) and self._in_character[ids[cut]]:
                cut -= 1
            cuts.append(cut)
        return [ids[: cuts[0]], ids[cuts[0] : cuts[1]], ids[cuts[1] :]]

    def _by_characters(
        self, ids: Ids, data: bytes, ends: NDArray[np.int64], low: float, high: float
    ) -> list[Ids]:
        begins = [0, *ends.tolist()]
        a, b = (_character(data, int(draw * (len(data) + 1))) for draw in (low, high))
        # Tokens before which a word starts, by their numbers and their bytes.
        starts = set(begins)
        words = [m.start() for m in _WORD_START.finditer(data) if m.start() in starts]
        safe = [0, *words, len(data)]
        number = {byte: bisect_left(begins, byte) for byte in safe}
        before_a, after_b = safe[bisect_right(safe, a) - 1], safe[bisect_left(safe, b)]
        after_a, before_b = safe[bisect_left(safe, a)], safe[bisect_right(safe, b) - 1]
        prefix = [ids[: number[before_a]], self._encode(data[before_a:a])]
        suffix = [self._encode(data[b:after_b]), ids[number[after_b] :]]
        if after_a <= before_b:
            middle = [
                self._encode(data[a:after_a]),
                ids[number[after_a] : number[before_b]],
                self._encode(data[before_b:b]),
            ]
        else:
            middle = [self._encode(data[a:b])]
        return [np.concatenate(part) for part in (prefix, middle, suffix)]

    def _encode(self, data: bytes) -> Ids:
        return np.array(self._tokenizer.encode(data.decode()) if data else [], dtype=np.int64)


def _character(data: bytes, place: int) -> int:
    """Where the character that a byte belongs to begins."""
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def infilling_prompt(
    tokens: Sequence[int], before: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]
) -> list[int]:
    """What a model is given to write a middle: PSM, the layout that all such models know.

    tokens: those before prefix, suffix and middle. before: what stands before every text.
    """
    first, second, third = tokens
    return [*before, first, *prefix, second, *suffix, third]
