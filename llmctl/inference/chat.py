"""Chat: answers in a conversation that grows, each continuing from what was read before.

A turn's prompt is the conversation anew, by its template; the engine keeps what it reads in blocks,
and reads again only what stands behind the last whole one that is unchanged. Where the conversation
no longer fits the model's context, its oldest exchanges are left out, and the system turn stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.errors import InputError
from llmctl.inference.constraints import GrammarKind, Grammars
from llmctl.inference.decoder import CausalDecoder, DecoderRunner
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.engine import Constraint, Engine, EngineConfig, EngineRequest
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.chat_template import ChatTemplate

LEAST_ROOM = 0.25
"""Share of the context that is kept free for an answer, where that many tokens may be written."""


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
    drafted: int = 0
    """Tokens that were guessed ahead."""
    accepted: int = 0
    """Those of them that were kept."""


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
        draft: DecoderRunner | None = None,
    ) -> None:
        """form: what answers are kept to. draft: a smaller model that writes ahead. Raises
        InputError if the template gives an answer no end, or the form can't be used."""
        how = EngineConfig(
            max_sequences=1,
            draft_tokens=config.draft_tokens,
            prompt_lookup=config.prompt_lookup,
        )
        self._engine = Engine(decoder, how, draft=draft)
        self._context = self._engine.scheduler.context
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
        number = self._engine.submit(
            EngineRequest(
                prompt=prompt,
                rules=self._rules,
                number=self._answers,  # each answer draws anew, and the same conversation the same
                constraint=self._constraint,
            )
        )
        (sequence,) = self._engine.unfinished(number)
        state = sequence.state
        try:
            while state.finish is None and not should_stop():
                for token in self._engine.step():
                    if token.error is not None:
                        raise token.error
                    if token.text:
                        tell(token.text)
        finally:
            self._engine.cancel(number)  # unless it is finished
        if state.finish is None and (piece := state.writer.close()):
            tell(piece)
        self._answers += 1
        self.turns = [*turns[left_out:], {"role": "assistant", "content": state.writer.text}]
        return ChatAnswer(
            text=state.writer.text,
            finish=state.finish or "stopped",
            prompt_tokens=len(prompt),
            read_tokens=len(prompt) - sequence.cached_tokens,
            new_tokens=state.new,
            left_out=left_out,
            drafted=state.drafted,
            accepted=state.accepted,
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
