"""Tokens that are guessed behind a text, for the model to read in one step: many for the price of
one where reading weights is what takes time.

They are those that followed in the text itself where its last words stood before (prompt lookup,
Saxena 2023), or what a smaller model writes (Leviathan et al. 2023). Which of them stay is decided
by the model (``decoding/speculative.py``). What is guessed depends on the text alone, never on what
else is being written.

B texts, V vocabulary, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import Tensor

from llmctl.errors import UsageError
from llmctl.inference.decoder import CausalDecoder, DecoderRunner
from llmctl.inference.decoding.speculative import distributions, pick
from llmctl.inference.decoding.strategies import Text
from llmctl.inference.engine.reading import BatchReader, new_cache, whole_blocks
from llmctl.inference.engine.sequences import EngineSequence, by_rules
from llmctl.models.layers.sequences import SequenceCache

FEWEST_LOOKED_FOR = 2
"""Tokens of which what followed them before is a guess: one alone is followed by too many things.
"""


class Drafter(Protocol):
    """What guesses ahead of texts."""

    def propose(self, sequences: Sequence[EngineSequence], budget: int) -> set[EngineSequence]:
        """Guess what follows texts of which the last token alone is unread, into their ``guesses``.

        budget: tokens that it may read for that beside each text's last few. Returns the texts that
        it has read too little of, and which wait until it has.
        """
        ...

    def forget(self, sequence: EngineSequence) -> None:
        """A text has no place any more, or has others than the guessed tokens."""
        ...


def room_ahead(sequence: EngineSequence, tokens: int) -> int:
    """Tokens that may be guessed: the last one of a text is never a guess that is read."""
    return min(tokens, sequence.state.max_new_tokens - sequence.state.new - 1)


class PromptLookup:
    """Guesses from the text itself."""

    def __init__(self, longest: int, tokens: int) -> None:
        """longest: how many of a text's last tokens are looked for in it, or fewer where these
        aren't found. tokens: how many are guessed."""
        self._longest, self._tokens = longest, tokens
        self._spelt: WeakKeyDictionary[EngineSequence, array[int]] = WeakKeyDictionary()

    def propose(self, sequences: Sequence[EngineSequence], budget: int) -> set[EngineSequence]:
        """Guess what followed the last place where a text's last tokens stood."""
        for sequence in sequences:
            spelt = self._spelt.setdefault(sequence, array("i"))
            spelt.extend(sequence.state.ids[len(spelt) :])
            ahead = room_ahead(sequence, self._tokens)
            sequence.guesses = repeated(spelt, self._longest, ahead)
        return set()

    def forget(self, sequence: EngineSequence) -> None:
        """Written tokens stay written: there is nothing to forget."""


def repeated(ids: array[int], longest: int, count: int) -> list[int]:
    """What followed the last place before the end where as many as possible of the last tokens
    stood, from ``longest`` down to two; where that reaches the end, it goes on with itself.

    >>> repeated(array("i", [7, 1, 2, 3, 9, 1, 2]), 3, 4)
    [3, 9, 1, 2]
    >>> repeated(array("i", [5, 8, 8, 8]), 3, 4)
    [8, 8, 8, 8]
    """
    # Looked for among bytes, which takes microseconds; a hit within a number is none.
    width, data = ids.itemsize, ids.tobytes()
    for size in range(min(longest, len(ids) - 1), min(longest, FEWEST_LOOKED_FOR) - 1, -1):
        last = data[-size * width :]
        place = data.rfind(last, 0, len(data) - width)
        while place > 0 and place % width:
            place = data.rfind(last, 0, place + len(last) - 1)
        if place >= 0:
            known = [*ids[place // width + size :]]
            return [known[n % len(known)] for n in range(count)]
    return []


class ModelDrafter(ABC):
    """Guesses of a smaller model: the likeliest tokens, or drawn ones where a text's are drawn."""

    def __init__(self, decoder: DecoderRunner, tokens: int) -> None:
        """tokens: how many are guessed."""
        self._tokens, self._most = tokens, decoder.max_positions

    @abstractmethod
    def _behind(self, sequence: EngineSequence) -> int:
        """Tokens of a text that the model has still to read."""

    @abstractmethod
    def _read(self, parts: Sequence[tuple[EngineSequence, int]]) -> Tensor:
        """Read the next tokens of texts, so many of each; returns logits (B, V) behind the last."""

    def propose(self, sequences: Sequence[EngineSequence], budget: int) -> set[EngineSequence]:
        """Guess what follows texts, those of a step together."""
        going: list[tuple[EngineSequence, int]] = []
        waiting: set[EngineSequence] = set()
        behind: list[tuple[EngineSequence, int]] = []
        for sequence in sequences:
            ahead = room_ahead(sequence, self._tokens)
            if self._most is not None:
                # A shorter context than the model's: beyond it the model writes alone.
                ahead = min(ahead, self._most - len(sequence.state.ids))
            if ahead <= 0:
                continue
            unread = self._behind(sequence) - 1
            if unread > self._tokens:  # more than a round leaves
                tokens = min(unread, budget)
                budget -= tokens
                if tokens:
                    behind.append((sequence, tokens))
                if tokens < unread:
                    waiting.add(sequence)
                    continue
            going.append((sequence, ahead))
        if behind:
            self._read(behind)
        while going:
            logits_BV = self._read([(one, self._behind(one)) for one, _ in going])
            stopped = set()
            for group in by_rules([one for one, _ in going], guessing=True):
                texts = [going[row][0] for row in group]
                stopped |= self._guess(texts, logits_BV[group])
            going = [
                (one, ahead)
                for one, ahead in going
                if one not in stopped and len(one.guesses) < ahead
            ]
        return waiting

    def _guess(self, texts: Sequence[EngineSequence], logits_BV: Tensor) -> set[EngineSequence]:
        """A token behind texts with the same rules; returns those that end with it."""
        rules = texts[0].request.rules
        known = [Text([*one.state.ids, *one.guesses], one.state.start) for one in texts]
        try:
            q_BV = distributions(logits_BV, known, rules)
        except UsageError:  # no token is left that may come, where the text may never get to
            if len(texts) == 1:
                return set(texts)
            parts = (self._guess([one], logits_BV[n : n + 1]) for n, one in enumerate(texts))
            return set().union(*parts)
        stopped = set()
        for row, one in enumerate(texts):
            place = one.state.new + len(one.guesses)
            q_1V = q_BV[row : row + 1]
            guess = pick(q_1V, rules, one.state, place, "draft")
            one.guesses.append(guess)
            if rules.config.samples:
                one.guess_probs.append(q_1V)
            if guess in one.state.ends:
                stopped.add(one)
        return stopped

    @abstractmethod
    def forget(self, sequence: EngineSequence) -> None:
        """Forget guesses that didn't stay."""


class CountsDrafter(ModelDrafter):
    """Guesses of an n-gram model, which looks at the last few tokens alone."""

    def __init__(self, decoder: DecoderRunner, tokens: int) -> None:
        super().__init__(decoder, tokens)
        self._decoder = decoder

    def _behind(self, sequence: EngineSequence) -> int:
        return 1

    def _read(self, parts: Sequence[tuple[EngineSequence, int]]) -> Tensor:
        return self._decoder.prefill([[*one.state.ids, *one.guesses] for one, _ in parts], 0)

    def forget(self, sequence: EngineSequence) -> None:
        """It remembers nothing."""


class NetworkDrafter(ModelDrafter):
    """Guesses of a network, whose keys and values lie in rows of their own."""

    def __init__(self, decoder: CausalDecoder, tokens: int) -> None:
        super().__init__(decoder, tokens)
        self._decoder, self._reader = decoder, BatchReader(decoder, 2)
        self._virtual = decoder.virtual_keys_values()
        self._caches: WeakKeyDictionary[EngineSequence, SequenceCache] = WeakKeyDictionary()

    def propose(self, sequences: Sequence[EngineSequence], budget: int) -> set[EngineSequence]:
        """Guess what follows texts, those of a step together."""
        for one in [one for one in self._caches if one.cache is None]:  # they lost their place
            del self._caches[one]
        return super().propose(sequences, budget)

    def _behind(self, sequence: EngineSequence) -> int:
        cache = self._caches.get(sequence)
        known = len(sequence.state.ids) + len(sequence.guesses)
        return known - (0 if cache is None else cache.length)

    def _read(self, parts: Sequence[tuple[EngineSequence, int]]) -> Tensor:
        ids: list[int] = []
        caches, places = [], []
        for sequence, tokens in parts:
            cache = self._cache(sequence, tokens)
            known = [*sequence.state.ids[cache.length :], *sequence.guesses]
            begin = max(0, cache.length - len(sequence.state.ids))
            ids += known[begin : begin + tokens]
            places.append(len(ids) - 1)
            caches.append((cache, tokens))
        return self._reader.logits(self._reader.hidden_states(caches, ids)[places])

    def _cache(self, sequence: EngineSequence, tokens: int) -> SequenceCache:
        """The row of a text, with room for so many more tokens."""
        cache = self._caches.get(sequence)
        needed = whole_blocks((0 if cache is None else cache.length) + tokens + self._tokens)
        if cache is None:
            cache = new_cache(self._decoder, needed, self._virtual)
            self._caches[sequence] = cache
        elif cache.capacity < needed:
            cache.grow(2 * needed)
        return cache

    def forget(self, sequence: EngineSequence) -> None:
        """Forget what was read of guesses that didn't stay, or all where a text has no place."""
        if sequence.cache is None:
            self._caches.pop(sequence, None)
        elif (cache := self._caches.get(sequence)) is not None:
            cache.truncate(len(sequence.state.ids) - 1)
