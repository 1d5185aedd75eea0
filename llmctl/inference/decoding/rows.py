"""Texts that are being written, and those that are finished.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from llmctl.errors import LOGITS_NOT_FINITE, ConfigError, InputError, UsageError
from llmctl.inference.decoding.config import GenerationConfig
from llmctl.inference.decoding.strategies import (
    LOGITS_PROCESSORS,
    LOGITS_WARPERS,
    LogitsProcessor,
    MinNewTokens,
    Text,
    chosen,
)
from llmctl.inference.decoding.writer import StreamingDetokenizer
from llmctl.tokenizers import Tokenizer

Finish = Literal["eos", "stop", "length"]

END_ROLES = ("eos", "turn_end")
"""The special tokens that end a text: the document's end, and that of one side of a chat."""


@dataclass(frozen=True)
class Completion:
    """A finished text."""

    prompt: int
    """The prompt's number."""
    sample: int
    """The number of this text among the prompt's."""
    text: str
    """What was written, without the prompt, the stop text and special tokens."""
    ids: tuple[int, ...]
    """The tokens that were written, with those of the end."""
    log_probs: tuple[float, ...]
    """The log-probability of each token under the model itself, before any logits processor; in
    nats."""
    finish: Finish
    """Why it ended: the end's token, a stop text, or the limit of tokens."""
    score: float | None = None
    """A beam's score: its log-probability divided by its length to the power of the length
    penalty."""
    drafted: int = 0
    """Tokens that were guessed ahead, by speculative decoding."""
    accepted: int = 0
    """Those of them that were kept."""


class CompiledSamplingParams:
    """A configuration with what the tokenizer makes of it."""

    def __init__(self, config: GenerationConfig, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a token that the vocabulary doesn't have."""
        self.config, self.tokenizer = config, tokenizer
        for name, tokens in (
            ("logit_bias", [token for token, _ in config.logit_bias]),
            ("allowed_token_ids", config.allowed_token_ids),
            ("stop_token_ids", config.stop_token_ids),
        ):
            for token in tokens:
                if not 0 <= token < tokenizer.vocab_size:
                    raise ConfigError(
                        f"{name}: there is no token {token}; the vocabulary has 0 to "
                        f"{tokenizer.vocab_size - 1}"
                    )
        own: frozenset[int] = frozenset()
        if not config.ignore_eos:
            roles = (tokenizer.special[role] for role in END_ROLES if role in tokenizer.special)
            own = tokenizer.further_ends.union(roles)
        self.ends = own.union(config.stop_token_ids)
        values: Mapping[str, Any] = {
            **dict(config),
            "bad_words": [ids for ids in self._barred() if set(ids) - self.ends],
            "min_new_tokens": MinNewTokens(config.min_new_tokens, self.ends)
            if config.min_new_tokens
            else None,
        }
        self.processors = chosen(LOGITS_PROCESSORS, values)
        self.warpers = chosen(LOGITS_WARPERS, values) if config.samples else []

    def _barred(self) -> list[list[int]]:
        """The tokens of each bad word, at a text's start and behind a space."""
        spelt = (text for word in self.config.bad_words for text in (word, f" {word}"))
        return [ids for text in spelt if (ids := self.tokenizer.encode(text))]

    def writer(self, prompt: Sequence[int]) -> StreamingDetokenizer:
        return StreamingDetokenizer(self.tokenizer, prompt, self.config.stop)

    def room(self, prompt: Sequence[int], max_positions: int | None) -> int:
        """New tokens that fit behind a prompt."""
        most = self.config.max_new_tokens
        return most if max_positions is None else min(most, max_positions - len(prompt))


def apply(
    processors: Sequence[LogitsProcessor], logits_BV: Tensor, texts: Sequence[Text]
) -> Tensor:
    """The logits after some strategies, in their order."""
    for processor in processors:
        logits_BV = processor(logits_BV, texts)
    return logits_BV


def check(scores_BV: Tensor) -> None:
    """Raises UsageError if every token is barred, InputError if a model's logits are no numbers."""
    # Their sum tells of every row whether its best is −∞, ∞ or no number.
    total = scores_BV.amax(-1).sum().item()
    if math.isnan(total) or total == math.inf:
        raise InputError(LOGITS_NOT_FINITE)
    if total == -math.inf:
        raise UsageError(
            "no token is left that may come; loosen no_repeat_ngram_size, bad_words or "
            "min_new_tokens"
        )


@dataclass
class SequenceState:
    """A text that is being written."""

    prompt: int
    """The prompt's number."""
    sample: int
    """The number of this text among the prompt's."""
    ids: list[int]
    """The prompt's tokens and the new ones."""
    start: int
    """The place in ``ids`` where the new tokens begin."""
    max_new_tokens: int
    """New tokens at most."""
    ends: frozenset[int]
    writer: StreamingDetokenizer
    on_text: Callable[[str], None] = lambda text: None
    """Is told the text as it becomes certain."""
    log_probs: list[float] = field(default_factory=list)
    finish: Finish | None = None
    drafted: int = 0
    """Tokens that were guessed ahead."""
    accepted: int = 0
    """Those of them that were kept."""

    @classmethod
    def begin(
        cls,
        rules: CompiledSamplingParams,
        prompt: int,
        sample: int,
        ids: Sequence[int],
        max_new_tokens: int,
    ) -> SequenceState:
        return cls(
            prompt, sample, list(ids), len(ids), max_new_tokens, rules.ends, rules.writer(ids)
        )

    @property
    def text(self) -> Text:
        return Text(self.ids, self.start)

    @property
    def new(self) -> int:
        """How many tokens were written."""
        return len(self.ids) - self.start

    def resume(self, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        """Go on behind new tokens that were written elsewhere, none of them the last."""
        self.ids += tokens
        self.log_probs += log_probs
        self.writer.push(*tokens)

    def append(self, token: int, log_prob: float) -> None:
        """Write a token, and finish if it is the last."""
        self.ids.append(token)
        self.log_probs.append(log_prob)
        piece = self.writer.push(token)
        if token in self.ends:
            self.finish = "eos"
        elif self.writer.stopped:
            self.finish = "stop"
        elif self.new == self.max_new_tokens:
            self.finish = "length"
        if self.finish:
            piece += self.writer.close()
            # The last character may be cut, and what it becomes may complete a stop text.
            if self.finish == "length" and self.writer.stopped:
                self.finish = "stop"
        if piece:
            self.on_text(piece)

    def complete(self) -> None:
        """Nothing can follow what is there."""
        if self.finish in (None, "length"):
            self.finish = "stop"
            if piece := self.writer.close():
                self.on_text(piece)

    def completion(self, score: float | None = None) -> Completion:
        assert self.finish
        return Completion(
            self.prompt,
            self.sample,
            self.writer.text,
            tuple(self.ids[self.start :]),
            tuple(self.log_probs),
            self.finish,
            score,
            self.drafted,
            self.accepted,
        )
