"""The engine: texts come in, are read and written together, and leave, each on its own.

A step reads the next tokens of every text that has a place in one product: the one that was written
last of those that are being written, and of new prompts as many as a step has time for, so that
they don't hold up the others. Then each text that has nothing unread gets its next token.
Where tokens are guessed ahead (drafting.py), a step reads these too, and a text gets all that are
right and one more.

What a text comes to doesn't depend on the others: its attention is computed alone, its random
numbers are its own, and oneDNN's packed products and those of int8 give a row the same bits in any
company of at least one other, which a lone row therefore gets (measured: ``tests/inference``).
Where PyTorch multiplies without them, the last bits of logits may depend on the number of rows.
A text that loses its place, or begins as another's answer did, has what was written one by one read
together, which may change last bits too. Guesses don't: they attend one by one. (Where one text at
a time is written without them its row is multiplied alone, by other kernels.)

V vocabulary, T tokens of a step, D width, R rows of logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import TypeGuard

import torch
from torch import Tensor

from llmctl.errors import LlmctlError, UsageError
from llmctl.inference.decoder import CausalDecoder, DecoderRunner, EncoderDecoderRunner
from llmctl.inference.decoding.config import GenerationConfig
from llmctl.inference.decoding.rows import CompiledSamplingParams, Completion
from llmctl.inference.decoding.sampling import choose
from llmctl.inference.decoding.speculative import choose_guessed
from llmctl.inference.engine.drafting import CountsDrafter, Drafter, NetworkDrafter, PromptLookup
from llmctl.inference.engine.reading import BatchReader, whole_blocks
from llmctl.inference.engine.requests import Constraint, EngineRequest, Scored, Token
from llmctl.inference.engine.scheduler import EngineConfig, Scheduler
from llmctl.inference.engine.sequences import (
    EngineSequence,
    by_rules,
    ranked_of,
    scored_prompt,
    sequences_of,
)


class Engine:
    """A model with all the texts that it is writing. For one thread at a time."""

    def __init__(
        self,
        decoder: CausalDecoder,
        config: EngineConfig | None = None,
        *,
        draft: DecoderRunner | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """draft: a smaller model with the same vocabulary, which writes ahead. Raises UsageError
        where tokens would be guessed in two ways."""
        self.decoder = decoder
        self.scheduler = Scheduler(decoder, config or EngineConfig())
        several = draft is not None or self.scheduler.config.prompt_lookup is not None
        rows = 2 if several else self.scheduler.config.max_sequences
        self._reader = BatchReader(decoder, rows)
        self._numbers, self._clock = count(), clock
        self._drafter = self._drafter_of(draft)
        self.drafts = self.drafted = 0
        """How often tokens were guessed, and how many."""
        self.accepted = [0] * self.scheduler.config.draft_tokens
        """Guesses that were kept, by their place among those of a step, from 0."""

    def _drafter_of(self, draft: DecoderRunner | None) -> Drafter | None:
        config = self.scheduler.config
        if draft is None:
            if config.prompt_lookup is None:
                return None
            return PromptLookup(config.prompt_lookup, config.draft_tokens)
        if config.prompt_lookup is not None:
            raise UsageError(
                "--draft and --prompt-lookup: what is written ahead is a model's or what stood "
                "before; leave one out"
            )
        if isinstance(draft, CausalDecoder):
            return NetworkDrafter(draft, config.draft_tokens)
        return CountsDrafter(draft, config.draft_tokens)

    @staticmethod
    def writes(decoder: DecoderRunner, config: GenerationConfig) -> TypeGuard[CausalDecoder]:
        """Whether texts of this kind are an engine's: token by token, by a network that reads
        nothing but the text itself."""
        alone = isinstance(decoder, CausalDecoder) and not isinstance(decoder, EncoderDecoderRunner)
        return alone and config.num_beams == 1 and config.penalty_alpha is None

    @staticmethod
    def guesses_by(draft: DecoderRunner) -> bool:
        """Whether a model can write ahead here: one that reads nothing but the text itself."""
        return not isinstance(draft, EncoderDecoderRunner)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.scheduler.running and not len(self.scheduler.waiting)

    def submit(self, request: EngineRequest) -> int:
        """Take a request; returns its number. Raises UsageError if it can't be served."""
        room = request.rules.room(request.prompt, self.scheduler.context)
        if not request.prompt:
            raise UsageError("the prompt is empty, and there is nothing to go on from")
        if room < 1:
            raise UsageError(
                f"the prompt has {len(request.prompt)} tokens and the model takes "
                f"{self.scheduler.context}, one of them new; shorten it"
            )
        needed = whole_blocks(len(request.prompt) + room)
        if needed > self.scheduler.kv_tokens:
            raise UsageError(
                f"prompt and answer may come to {needed} tokens, and keys and values of "
                f"{self.scheduler.kv_tokens} are kept at most; shorten one, or raise kv_tokens"
            )
        number = next(self._numbers)
        first, *others = sequences_of(request, number, room)
        first.siblings = others
        self.scheduler.waiting.put(request.client, first)
        return number

    def unfinished(self, number: int) -> list[EngineSequence]:
        """A request's texts that aren't finished; the first alone until its prompt was read."""
        texts = [*self.scheduler.running, *self.scheduler.waiting]
        return [one for one in texts if one.number == number]

    def knows(self, number: int) -> bool:
        """Whether a request still has texts that aren't finished."""
        return bool(self.unfinished(number))

    def cancel(self, number: int) -> None:
        """End a request; nothing more is told of it."""
        for sequence in self.unfinished(number):
            self.scheduler.drop(sequence)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Do a step's work; returns what has become of the texts."""
        begin = self._clock()
        self.scheduler.admit()
        waiting = self._guess()
        parts = self.scheduler.planned(waiting, drafts=self._drafter is not None)
        if not parts:
            return []
        of_prompts = sum(new - 1 for one, new in parts if not one.guesses)
        hidden_TD = self._read(parts)
        tokens = self._write(parts, hidden_TD)
        self.scheduler.learn_pace(self._clock() - begin, of_prompts)
        return tokens

    def _guess(self) -> set[EngineSequence]:
        """Guess what follows the texts that are being written; returns those that have to wait."""
        if self._drafter is None:
            return set()
        for sequence in self.scheduler.running:
            sequence.drop_guesses()
        going = [one for one in self.scheduler.running if one.state.new and one.unread == 1]
        return self._drafter.propose(going, self.scheduler.prefill_tokens()) if going else set()

    def run(
        self,
        prompts: Iterable[Sequence[int]],
        rules: CompiledSamplingParams,
        *,
        first: int = 0,
        constraint: Callable[[], Constraint] | None = None,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Iterator[list[Completion]]:
        """The texts that continue each prompt, in the order of the prompts.

        first: the first prompt's number, by which samples are drawn. constraint: makes that of each
        text. on_text: is told the text as it becomes certain; for one prompt and one sample. Raises
        what ends a request.
        """
        pending = enumerate(prompts, first)
        order: list[tuple[int, int]] = []
        sequences: dict[int, list[EngineSequence]] = {}
        while True:
            while len(self.scheduler.waiting) < self.scheduler.config.max_sequences:
                number, prompt = next(pending, (0, None))
                if prompt is None:
                    break
                request = EngineRequest(
                    prompt=prompt, rules=rules, number=number, constraint=constraint
                )
                asked = self.submit(request)
                (first_one,) = self.unfinished(asked)
                sequences[asked] = [first_one, *first_one.siblings]
                order.append((number, asked))
            while order and all(one.state.finish for one in sequences[order[0][1]]):
                number, asked = order.pop(0)
                yield [one.state.completion() for one in sequences.pop(asked)]
            if not order:
                return
            for token in self.step():
                if token.error is not None:
                    raise token.error
                if token.text:
                    on_text(token.text)

    def _read(self, parts: Sequence[tuple[EngineSequence, int]]) -> Tensor:
        """Hidden states (T, D) of the tokens that are read."""
        ids: list[int] = []
        caches = []
        for sequence, tokens in parts:
            assert sequence.cache is not None
            length = sequence.cache.length
            known = sequence.state.ids[length : length + tokens]
            ids += [*known, *sequence.guesses[: tokens - len(known)]]
            caches.append((sequence.cache, tokens))
        guessed = {number for number, (one, _) in enumerate(parts) if one.guesses}
        return self._reader.hidden_states(caches, ids, guessed)

    # What it writes

    def _write(self, parts: Sequence[tuple[EngineSequence, int]], hidden_TD: Tensor) -> list[Token]:
        """A token for each text without unread ones; of guesses those that are right, and one
        more."""
        ready: list[EngineSequence] = []
        rows: list[int] = []
        places: list[int] = []
        stop = 0
        for sequence, tokens in parts:
            if sequence.scores_prompt:
                logits_TV = self._reader.logits(hidden_TD[stop : stop + tokens])
                sequence.prompt_scores += scored_prompt(sequence, logits_TV, tokens)
            stop += tokens
            if sequence.unread <= 0:
                ready.append(sequence)
                rows.append(len(places))
                places += range(stop - 1 - len(sequence.guesses), stop)
        if not ready:
            return []
        logits_RV = self._reader.logits(hidden_TD[places])
        for row, sequence in list(zip(rows, ready, strict=True)):
            if sequence.state.new == 0:
                self.scheduler.keep(sequence, sequence.state.ids)
                for sibling in self.scheduler.fork(sequence):
                    ready.append(sibling)
                    rows.append(row)
        told: list[Token] = []
        going = list(zip(ready, rows, strict=True))
        for place in count():
            for group in by_rules([one for one, _ in going]):
                # One whose sibling failed has gone with it.
                members = [going[n] for n in group if going[n][0].cache is not None]
                if members:
                    logits = logits_RV[[row + place for _, row in members]]
                    told += self._choose([one for one, _ in members], logits, place)
            going = [(one, row) for one, row in going if self._goes_on(one, place)]
            if not going:
                break
        if self._drafter is not None:
            for sequence in ready:
                self._settle(sequence)
        return told

    def _goes_on(self, sequence: EngineSequence, place: int) -> bool:
        """Whether the token that was written was guessed, and what follows it is there already."""
        return (
            sequence.cache is not None
            and place < len(sequence.guesses)
            and sequence.state.ids[-1] == sequence.guesses[place]
        )

    def _settle(self, sequence: EngineSequence) -> None:
        """Forget what was read of guesses that weren't kept."""
        assert self._drafter is not None
        if sequence.cache is not None:
            sequence.cache.truncate(len(sequence.state.ids) - 1)
        self._drafter.forget(sequence)

    def _choose(
        self, group: Sequence[EngineSequence], logits_RV: Tensor, place: int
    ) -> list[Token]:
        """The next token of texts with the same rules. place: its number in this step."""
        try:
            barred = [one.constraint.barred() if one.constraint else None for one in group]
            barred_RV = None
            if barred[0] is not None:  # a constraint is one text's own
                barred_RV = barred[0][None, : logits_RV.shape[-1]].to(logits_RV.device)
            states, rules = [one.state for one in group], group[0].request.rules
            if place < len(group[0].guess_probs):  # drawn guesses are one text's own too
                guess = group[0].guesses[place], group[0].guess_probs[place]
                token, log_prob = choose_guessed(logits_RV, states[0], rules, *guess, barred_RV)
                chosen = [token], [log_prob]
            else:
                chosen = choose(logits_RV, states, rules, barred_RV)
        except LlmctlError as error:
            if len(group) > 1:  # one of them is to blame, and the others go on
                return [
                    token
                    for row, one in enumerate(group)
                    if one.cache is not None
                    for token in self._choose([one], logits_RV[row : row + 1], place)
                ]
            self.cancel(group[0].number)
            return [Token(group[0].number, group[0].sample, error=error)]
        ranked = ranked_of(logits_RV, max(one.request.top for one in group))
        # Both are of the same logits, by kernels whose last bits differ.
        ranked = [
            tuple((other, log_prob if other == token else value) for other, value in row)
            for row, token, log_prob in zip(ranked, *chosen, strict=True)
        ]
        self._count(group, chosen[0], place)
        return [
            self._take(one, Scored(token, log_prob, row[: one.request.top]))
            for one, token, log_prob, row in zip(group, *chosen, ranked, strict=True)
        ]

    def _count(self, group: Sequence[EngineSequence], tokens: Sequence[int], place: int) -> None:
        """Take into account what was guessed, and what of it is right."""
        for one, token in zip(group, tokens, strict=True):
            if place == 0 and one.guesses:
                self.drafts += 1
                self.drafted += len(one.guesses)
                one.state.drafted += len(one.guesses)
            if place < len(one.guesses) and token == one.guesses[place]:
                self.accepted[place] += 1
                one.state.accepted += 1

    def _take(self, sequence: EngineSequence, scored: Scored) -> Token:
        """Write a token, and let a finished text go."""
        assert scored.log_prob is not None
        first = sequence.state.new == 0
        try:
            text = sequence.append(scored.token, scored.log_prob)
        except LlmctlError as error:  # of its constraint, which can't be followed any further
            self.cancel(sequence.number)
            return Token(sequence.number, sequence.sample, error=error)
        if sequence.state.finish:
            assert sequence.cache is not None
            sequence.cache.truncate(len(sequence.state.ids) - 1)
            self.scheduler.keep(sequence, sequence.state.ids)
            self.scheduler.drop(sequence)
        return Token(
            sequence.number,
            sequence.sample,
            scored,
            text,
            sequence.state.finish,
            tuple(sequence.prompt_scores) if first else (),
            sequence.cached_tokens if first else 0,
        )
