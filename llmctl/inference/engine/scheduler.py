"""Who has a place in an engine, how much room each has, and what is read in a step.

Keys and values of a text lie in a row of its own, which grows; beginnings are kept in blocks for
others that begin so too (prefixes.py). Both count against one limit. Where it is reached, kept
beginnings go first, and then the youngest text loses its place, to be read and gone on with later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import count

from pydantic import Field

from llmctl.config import Bytes, Config
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding.config import MOST_AHEAD, MOST_LOOKED_FOR
from llmctl.inference.engine.prefixes import PrefixCache
from llmctl.inference.engine.reading import bytes_of, new_cache, whole_blocks
from llmctl.inference.engine.sequences import EngineSequence
from llmctl.inference.engine.waiting import FairQueue
from llmctl.models.layers.sequences import KV_BLOCK, SequenceCache

MOST_PREFILL = 512
"""Tokens of prompts that are read in a step at most."""
FIRST_TOKEN_SECONDS = 1e-3
"""Time that a prompt's token takes, until it has been measured."""
FIRST_ROWS = 256
"""Slots that a row of keys and values begins with, where its text may become so long."""

FEWEST_TEXTS, MOST_KV_TOKENS = 16, 1 << 16
"""Texts with the model's whole context that there is room for at the least, and tokens of all at
most, where nothing is said."""


class EngineConfig(Config):
    """How much is done at once."""

    max_sequences: int = Field(32, ge=1, le=4096)
    """Texts that are written at once; more wait."""
    kv_tokens: int = Field(0, ge=0)
    """Tokens whose keys and values are kept at most, those of prompts that may come again among
    them. 0: as many as all texts that are written at once have with the model's whole context,
    sixteen of them at the least, and 65,536 tokens at most. A draft model's own are beside them."""
    prefix_cache: Bytes = Field(1_000_000_000, ge=0)
    """Bytes of keys and values that are kept of texts for others that begin so too (64MB, 1.5GB),
    of each model; 0: none."""
    draft_tokens: int = Field(4, ge=1, le=MOST_AHEAD)
    """Tokens that are guessed ahead of a text, by a smaller model or by what stands before."""
    prompt_lookup: int | None = Field(None, ge=1, le=MOST_LOOKED_FOR)
    """Guess what followed the last place in the text where its last tokens stood, so many or fewer;
    unset: don't."""
    step_seconds: float = Field(0.05, gt=0)
    """Time that reading prompts may add to a step while other texts are being written."""


class Scheduler:
    """The texts of an engine, those that have a place and those that wait for one."""

    def __init__(self, decoder: CausalDecoder, config: EngineConfig) -> None:
        self.config, self._decoder = config, decoder
        assert decoder.max_positions is not None
        self.context: int = decoder.max_positions
        """Tokens that a text may have."""
        whole = whole_blocks(self.context)
        texts = max(FEWEST_TEXTS, config.max_sequences)
        self.kv_tokens = config.kv_tokens or max(whole, min(texts * whole, MOST_KV_TOKENS))
        self.prefixes = PrefixCache(bytes_of(decoder, KV_BLOCK), config.prefix_cache)
        self.running: list[EngineSequence] = []
        self.waiting: FairQueue[EngineSequence] = FairQueue()
        self.preemptions = 0
        self.prefix_queries = self.prefix_hits = 0
        """Tokens of prompts that were looked for among those kept, and that were found."""
        self._virtual = decoder.virtual_keys_values()
        self._rows = 0
        """Slots of all texts' rows."""
        self._ages = count()
        self._token_seconds = FIRST_TOKEN_SECONDS
        """Time that a prompt's token takes, as measured."""
        self._step_seconds = 0.0
        """Time of a step without any."""

    @property
    def kv_used(self) -> int:
        """Tokens that there is room for in rows and kept blocks."""
        return self._rows + self.prefixes.tokens

    def admit(self) -> None:
        """Give places to those that wait, as far as there are any."""
        while (sequence := self.waiting.peek()) is not None:
            if len(self.running) >= self.config.max_sequences:
                return
            capacity = min(
                max(FIRST_ROWS, whole_blocks(sequence.unread + KV_BLOCK)), sequence.most_slots
            )
            if not self._make_room(capacity):
                if self.running:
                    return
                self.prefixes.clear()
            self.waiting.take()
            self._place(sequence, capacity)

    def _place(self, sequence: EngineSequence, capacity: int) -> None:
        """Give a text a row, with what is kept of its beginning."""
        sequence.cache = self._new_cache(capacity)
        sequence.age = next(self._ages)
        sequence.prompt_scores.clear()
        self.running.append(sequence)
        if not self.prefixes.most_tokens or sequence.scores_prompt:
            return
        # What follows the last token is asked for, so that one is read.
        ids = sequence.state.ids[:-1]
        sequence.held = self.prefixes.take(ids, sequence.request.salt)
        for block in sequence.held:
            sequence.cache.append(block.keys_LKSH, block.values_LKSH)
        self.prefix_queries += len(ids)
        self.prefix_hits += sequence.cache.length
        if sequence.state.new == 0:
            sequence.cached_tokens = sequence.cache.length

    def _new_cache(self, capacity: int) -> SequenceCache:
        self._rows += capacity
        return new_cache(self._decoder, capacity, self._virtual)

    def _make_room(self, slots: int) -> bool:
        """Whether there is room for so many more, if need be where kept beginnings were."""
        missing = self.kv_used + slots - self.kv_tokens
        return missing <= 0 or self.prefixes.evict(missing) >= missing

    def drop(self, sequence: EngineSequence) -> None:
        """A text has no place any more, nor waits for one."""
        if sequence.cache is not None:
            self._leave(sequence)
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def _leave(self, sequence: EngineSequence) -> None:
        assert sequence.cache is not None
        self._rows -= sequence.cache.capacity
        self.prefixes.release(sequence.held)
        sequence.cache, sequence.held = None, []
        sequence.drop_guesses()

    def _preempt(self, sequence: EngineSequence) -> None:
        """A text waits for another place, where it is read anew and gone on with."""
        self.drop(sequence)
        self.waiting.put_back(sequence.request.client, sequence)
        self.preemptions += 1

    def _grow(self, sequence: EngineSequence, tokens: int) -> bool:
        """Make room in a text's row; False where it lost its place for that."""
        assert sequence.cache is not None
        needed = sequence.cache.length + tokens
        if needed <= sequence.cache.capacity:
            return True
        capacity = min(max(2 * sequence.cache.capacity, whole_blocks(needed)), sequence.most_slots)
        further = capacity - sequence.cache.capacity
        if not self._make_room(further):
            for one in self.running:  # what is kept is of less use than a place
                self.prefixes.release(one.held)
                one.held = []
            while not self._make_room(further):
                youngest = max(self.running, key=lambda one: one.age)
                self._preempt(youngest)
                if youngest is sequence:
                    return False
        sequence.cache.grow(capacity)
        self._rows += further
        return True

    def fork(self, sequence: EngineSequence) -> Iterator[EngineSequence]:
        """The other samples of a prompt that was read, with copies of its row; those without room
        wait, to read it again."""
        siblings, sequence.siblings = sequence.siblings, []
        for sibling in siblings:
            assert sequence.cache is not None
            capacity = sequence.cache.capacity
            full = len(self.running) >= self.config.max_sequences
            if full or not self._make_room(capacity):
                self.waiting.put(sibling.request.client, sibling)
                continue
            length = sequence.cache.length
            sibling.cache = self._new_cache(capacity)
            sibling.cache.append(*sequence.cache.slots(0, length))
            sibling.age, sibling.cached_tokens = next(self._ages), length
            self.running.append(sibling)
            yield sibling

    def keep(self, sequence: EngineSequence, ids: Sequence[int]) -> None:
        """Keep what was read of a text, as far as there is room without others losing theirs."""
        assert sequence.cache is not None
        ids = ids[: min(sequence.cache.length, self.prefixes.most_tokens)]
        missing = max(0, len(ids) // KV_BLOCK - len(sequence.held)) * KV_BLOCK
        if missing and self._make_room(missing):
            self.prefixes.keep(ids, sequence.cache, sequence.held, sequence.request.salt)

    def planned(
        self, waiting: Collection[EngineSequence] = (), *, drafts: bool = False
    ) -> list[tuple[EngineSequence, int]]:
        """The texts that are read from in this step, and how many tokens of each, guesses among
        them. waiting: texts that aren't. drafts: whether tokens are guessed, always behind a text
        that is read but for its last token."""
        left = self.prefill_tokens()
        parts = []
        for sequence in sorted(self.running, key=lambda one: one.age):
            # It lost its place to an older one, or has to wait.
            if sequence.cache is None or sequence in waiting:
                continue
            length, tokens = sequence.cache.length, sequence.unread
            if tokens == 1:
                tokens += len(sequence.guesses)
            else:
                tokens -= drafts and sequence.state.new > 0  # what was written is read anew
                # Pieces end where blocks do, but for the last.
                stop = (length + left) // KV_BLOCK * KV_BLOCK
                tokens = min(tokens, max(0, stop - length))
                left -= tokens
            if tokens and self._grow(sequence, tokens):
                parts.append((sequence, tokens))
        return [(one, tokens) for one, tokens in parts if one.cache is not None]

    def prefill_tokens(self) -> int:
        """Tokens of prompts for which a step has time."""
        if all(sequence.unread > 1 for sequence in self.running):
            return MOST_PREFILL
        tokens = int(self.config.step_seconds / self._token_seconds)
        return min(max(KV_BLOCK, tokens // KV_BLOCK * KV_BLOCK), MOST_PREFILL)

    def learn_pace(self, seconds: float, prompt_tokens: int) -> None:
        """Take a step's time into account, in which so many tokens of prompts were read."""
        if not prompt_tokens:
            self._step_seconds += 0.2 * (seconds - self._step_seconds)
            return
        each = max(seconds - self._step_seconds, 0.0) / prompt_tokens
        self._token_seconds += 0.2 * (max(each, 1e-7) - self._token_seconds)
