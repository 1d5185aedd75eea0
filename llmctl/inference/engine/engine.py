"""The engine: texts come in, are read and written together, and leave, each on its own.

A step reads the next tokens of every text that has a place in one product: the one that was written
last of those that are being written, and of new prompts as many as a step has time for, so that
they don't hold up the others. Then each text that has nothing unread gets its next token.

What a text comes to doesn't depend on the others: its attention is computed alone, its random
numbers are its own, and oneDNN's packed products and those of int8 give a row the same bits in any
company of at least one other, which a lone row therefore gets (measured: ``tests/inference``).
Where PyTorch multiplies without them, the last bits of logits may depend on the number of rows.
A text that loses its place, or begins as another's answer did, has what was written one by one read
together, which may change last bits too.

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
from llmctl.inference.engine.requests import Constraint, EngineRequest, Scored, Token
from llmctl.inference.engine.scheduler import EngineConfig, Scheduler, whole_blocks
from llmctl.inference.engine.sequences import EngineSequence, ranked_of, scored_prompt, sequences_of
from llmctl.inference.native import FusedLlama
from llmctl.models.layers.sequences import SequenceBatch

FEWEST_ENGINE_ROWS = 2
"""Rows of a product at the least, where several texts may be written at once: a single one is
multiplied by another kernel."""


class Engine:
    """A model with all the texts that it is writing. For one thread at a time."""

    def __init__(
        self,
        decoder: CausalDecoder,
        config: EngineConfig | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.decoder = decoder
        self.scheduler = Scheduler(decoder, config or EngineConfig())
        body = decoder.model.body
        self._fused = FusedLlama(body) if FusedLlama.suits(body) else None
        alone = 1 if self._fused else FEWEST_ENGINE_ROWS  # whose rows are never another's
        self._fewest_rows = min(alone, self.scheduler.config.max_sequences)
        self._numbers, self._clock = count(), clock

    @staticmethod
    def writes(decoder: DecoderRunner, config: GenerationConfig) -> TypeGuard[CausalDecoder]:
        """Whether texts of this kind are an engine's: token by token, by a network that reads
        nothing but the text itself."""
        alone = isinstance(decoder, CausalDecoder) and not isinstance(decoder, EncoderDecoderRunner)
        return alone and config.num_beams == 1 and config.penalty_alpha is None

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
        parts = self.scheduler.planned()
        if not parts:
            return []
        hidden_TD = self._read(parts)
        tokens = self._write(parts, hidden_TD)
        self.scheduler.learn_pace(self._clock() - begin, sum(new - 1 for _, new in parts))
        return tokens

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
            ids += sequence.state.ids[length : length + tokens]
            caches.append((sequence.cache, tokens))
        if self._fused is not None:
            return self._fused.read(ids, caches)
        padding = max(0, self._fewest_rows - len(ids))
        body = self.decoder.model.body
        config = body.config
        batch = SequenceBatch(
            caches, window=config.window(), padding=padding, wide_layers=config.wide_layers()
        )
        ids_1T = torch.tensor([ids + [0] * padding], device=self.decoder.device)
        hidden_1TD: Tensor = body(ids_1T, cache=batch)
        return hidden_1TD[0]

    def _logits(self, hidden_RD: Tensor) -> Tensor:
        rows = len(hidden_RD)
        if rows < self._fewest_rows:
            padding_RD = hidden_RD.new_zeros(self._fewest_rows - rows, hidden_RD.shape[1])
            hidden_RD = torch.cat((hidden_RD, padding_RD))
        return self.decoder.logits(hidden_RD)[:rows]

    # What it writes

    def _write(self, parts: Sequence[tuple[EngineSequence, int]], hidden_TD: Tensor) -> list[Token]:
        """A token for each text without unread ones."""
        ready, places, stop = [], [], 0
        for sequence, tokens in parts:
            if sequence.scores_prompt:
                logits_TV = self._logits(hidden_TD[stop : stop + tokens])
                sequence.prompt_scores += scored_prompt(sequence, logits_TV, tokens)
            stop += tokens
            if not sequence.unread:
                ready.append(sequence)
                places.append(stop - 1)
        if not ready:
            return []
        logits_RV = self._logits(hidden_TD[places])
        for row, sequence in enumerate(ready[:]):
            if sequence.state.new == 0:
                self.scheduler.keep(sequence, sequence.state.ids)
                for sibling in self.scheduler.fork(sequence):
                    ready.append(sibling)
                    places.append(row)
            else:
                places[row] = row
        rows_R = [*range(len(logits_RV)), *places[len(logits_RV) :]]
        if len(rows_R) > len(logits_RV):
            logits_RV = logits_RV[rows_R]
        told: list[Token] = []
        for group in _by_rules(ready):
            told += self._choose([ready[row] for row in group], logits_RV[group])
        return told

    def _choose(self, group: Sequence[EngineSequence], logits_RV: Tensor) -> list[Token]:
        """The next token of texts with the same rules."""
        try:
            barred = [one.constraint.barred() if one.constraint else None for one in group]
            barred_RV = None
            if barred[0] is not None:  # a constraint is one text's own
                barred_RV = barred[0][None, : logits_RV.shape[-1]].to(logits_RV.device)
            states = [one.state for one in group]
            chosen = choose(logits_RV, states, group[0].request.rules, barred_RV)
        except LlmctlError as error:
            if len(group) > 1:  # one of them is to blame, and the others go on
                rows = range(len(group))
                return [t for r in rows for t in self._choose([group[r]], logits_RV[r : r + 1])]
            self.cancel(group[0].number)
            return [Token(group[0].number, group[0].sample, error=error)]
        ranked = ranked_of(logits_RV, max(one.request.top for one in group))
        # Both are of the same logits, by kernels whose last bits differ.
        ranked = [
            tuple((other, log_prob if other == token else value) for other, value in row)
            for row, token, log_prob in zip(ranked, *chosen, strict=True)
        ]
        return [
            self._take(one, Scored(token, log_prob, row[: one.request.top]))
            for one, token, log_prob, row in zip(group, *chosen, ranked, strict=True)
        ]

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


def _by_rules(sequences: Sequence[EngineSequence]) -> list[list[int]]:
    """Places of texts whose tokens are chosen alike; of one with a constraint alone."""
    groups: dict[object, list[int]] = {}
    for place, sequence in enumerate(sequences):
        rules = sequence.request.rules
        alike = (rules.config, rules.ends)
        groups.setdefault(id(sequence) if sequence.constraint else alike, []).append(place)
    return list(groups.values())
