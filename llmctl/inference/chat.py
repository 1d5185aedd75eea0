"""Chat: answers in a conversation that grows, each continuing from what was read before.

A turn's prompt is the conversation anew, by its template; what it has in common with what the
model read last is not read again. Where the conversation no longer fits the model's context, its
oldest exchanges are left out, and the system turn stays.

B rows, one here; T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmctl.errors import InputError
from llmctl.inference.constraints import GrammarKind, Grammars
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.decoding.rows import SequenceState
from llmctl.inference.decoding.sampling import write
from llmctl.inference.engine import Constraint
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.chat_template import ChatTemplate

READ_AT_ONCE = 128
"""Tokens of a prompt's new part read together: each has logits, of which the last are wanted."""
LEAST_ROOM = 0.25
"""Share of the context that is kept free for an answer, where that many tokens may be written."""


class Stopped(Exception):
    """Somebody wants no more of an answer."""


class PrefixCachedRunner:
    """A decoder of one row that reads of a prompt only what differs from what it read last."""

    def __init__(self, decoder: CausalDecoder, context: int) -> None:
        """context: tokens that a conversation may have, for which there is room from the start."""
        self._decoder, self._context = decoder, context
        self.vocab_size, self.max_positions = decoder.vocab_size, decoder.max_positions
        self.should_stop: Callable[[], bool] = lambda: False
        self.read: list[int] = []
        """The tokens whose keys and values are kept."""
        self.tokens_read = 0
        """How many were read in all."""

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """Read one prompt, as ``DecoderRunner`` says."""
        (prompt,) = prompts
        # The last token is read again if need be, as what follows it is asked for.
        shared = _common(self.read, prompt[:-1])
        if not shared:
            self.read = list(prompt)
            self.tokens_read += len(prompt)
            return self._decoder.prefill(prompts, self._context - len(prompt))
        self._decoder.truncate(shared)
        del self.read[shared:]
        for begin in range(shared, len(prompt), READ_AT_ONCE):
            part = torch.tensor([prompt[begin : begin + READ_AT_ONCE]])
            logits_BV = self._extend(part)[:, -1]
        return logits_BV

    def extend(self, ids_BT: Tensor) -> Tensor:
        """Read more tokens, as ``DecoderRunner`` says. Raises Stopped where that is wished."""
        if self.should_stop():
            raise Stopped
        return self._extend(ids_BT)

    def _extend(self, ids_BT: Tensor) -> Tensor:
        logits_BTV = self._decoder.extend(ids_BT.to(self._decoder.device))
        self.read += ids_BT[0].tolist()
        self.tokens_read += ids_BT.shape[1]
        return logits_BTV

    def select(self, rows_R: Tensor) -> None:
        """Choose nothing, as there is one row only."""
        self._decoder.select(rows_R)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class ChatAnswer:
    """What the model said."""

    text: str
    finish: str
    """Why it ended: ``eos``, ``stop``, ``length``, or ``stopped`` where somebody wanted no more."""
    prompt_tokens: int
    """Tokens of the conversation up to the answer."""
    read_tokens: int
    """Tokens of the conversation that were read for this answer."""
    new_tokens: int
    left_out: int
    """Turns that no longer fit and were left out for this answer, for good."""


class ChatSession:
    """A conversation with a model."""

    def __init__(
        self,
        decoder: CausalDecoder,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        config: GenerationConfig,
        *,
        form: tuple[GrammarKind, Any] | None = None,
    ) -> None:
        """form: what answers are kept to. Raises InputError if the template gives an answer no end,
        or the form can't be used."""
        assert decoder.max_positions is not None
        self._context = decoder.max_positions
        self._decoder = PrefixCachedRunner(decoder, self._context)
        self._template, self._config = template, config
        tokenizer = copy.copy(tokenizer)
        # Whatever the template calls it.
        tokenizer.special = {**tokenizer.special, "turn_end": template.answer_end}
        self._rules = CompiledSamplingParams(config, tokenizer)
        self._constraint: Callable[[], Constraint] | None = None
        if form is not None:
            self._constraint = Grammars(tokenizer, self._rules.ends).constraint(*form)
        self._system: str | None = None
        self.turns: list[dict[str, str]] = []
        """User and assistant in turns."""
        self._answers = 0

    def reset(self) -> None:
        """Begin a new conversation; the system turn stays."""
        self.turns.clear()

    def set_system(self, text: str | None) -> None:
        """Say what stands before the conversation. Raises InputError if the template takes none or
        it leaves no room."""
        before, self._system = self._system, text
        try:
            if len(self._prompt([{"role": "user", "content": "…"}])) >= self._context:
                raise InputError(
                    f"the system turn does not fit the model's {self._context} tokens; shorten it"
                )
        except InputError:
            self._system = before
            raise

    def answer(
        self,
        text: str,
        *,
        tell: Callable[[str], None] = lambda piece: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> ChatAnswer:
        """The answer to what a user says.

        tell: is told the text as it becomes certain. should_stop: asked before each token.
        Raises InputError for a turn that the template refuses or that is too long, and forgets it.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        prompt, left_out = self._fitting(turns)
        limit = self._rules.room(prompt, self._context)
        read_before = self._decoder.tokens_read
        # Each answer draws anew, and the same conversation the same.
        row = SequenceState.begin(self._rules, self._answers, 0, prompt, limit)
        row.on_text = tell
        self._decoder.should_stop = should_stop
        finish = "stopped"
        constraint = self._constraint() if self._constraint is not None else None
        try:
            for finished in write(self._decoder, [row], self._rules, constraint):
                finish = finished.finish or finish
        except Stopped:
            if piece := row.writer.close():
                tell(piece)
        self._answers += 1
        self.turns = [*turns[left_out:], {"role": "assistant", "content": row.writer.text}]
        # All that was written was read too, but for the last token.
        written = max(row.new - 1, 0)
        return ChatAnswer(
            text=row.writer.text,
            finish=finish,
            prompt_tokens=len(prompt),
            read_tokens=self._decoder.tokens_read - read_before - written,
            new_tokens=row.new,
            left_out=left_out,
        )

    def _prompt(self, turns: Sequence[dict[str, str]]) -> list[int]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return self._template.encode_prompt([*system, *turns])

    def _fitting(self, turns: Sequence[dict[str, str]]) -> tuple[list[int], int]:
        """The prompt of the last turns that leave room for an answer, and how many turns were left
        out. Raises InputError if not even the last one fits."""
        room = min(self._config.max_new_tokens, max(1, int(LEAST_ROOM * self._context)))
        left_out = 0
        prompt = self._prompt(turns)
        while len(prompt) + room > self._context and left_out < len(turns) - 1:
            left_out += 2
            prompt = self._prompt(turns[left_out:])
        if len(prompt) >= self._context:
            raise InputError(
                f"what is said comes to {len(prompt)} tokens with all around it, and the model "
                f"reads {self._context}; say less"
            )
        return prompt, left_out
