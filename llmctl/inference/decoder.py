"""The next token: what every decoding strategy asks of a language model.

B rows, T new tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.heads.seq2seq import Seq2Seq
from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.cross_attention import EncoderOutput
from llmctl.tokenizers import Tokenizer


class DecoderRunner(Protocol):
    """A language model that reads texts row by row and says what may follow each."""

    vocab_size: int
    max_positions: int | None
    """Tokens that a text may have; None: any number."""

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """Begin anew with a row for each prompt, none empty, and room for so many more tokens;
        returns the logits (B, V) of what follows each."""
        ...

    def extend(self, ids_BT: Tensor) -> Tensor:
        """Read more tokens in every row; returns the logits (B, T, V) after each of them."""
        ...

    def select(self, rows_R: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        ...


@runtime_checkable
class EncoderDecoderRunner(DecoderRunner, Protocol):
    """A language model that reads sources first; its prompts are the beginnings of targets."""

    forced: int
    """Tokens behind the first of a target's beginning, which others count as written."""

    def begin(self, sources: Sequence[Sequence[int]]) -> list[list[int]]:
        """Read a source for each row of every ``prefill`` from now on; returns how each target
        begins."""
        ...


@runtime_checkable
class TruncatableRunner(DecoderRunner, Protocol):
    """A language model that can forget the last tokens of its one row."""

    def truncate(self, length: int) -> None:
        """Forget what was read beyond the first ``length`` tokens."""
        ...


class CausalDecoder:
    """A neural language model with its key/value cache, allocated once for each batch."""

    def __init__(
        self,
        model: CausalLM | EncoderDecoderLM,
        *,
        longest: int | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """longest: tokens that the model was trained to read at once; by default its positions.
        head: hidden states to logits, where it isn't the model's own; see ``prepare``. tokenizer:
        what it has no piece for never follows, as the rows that fill a vocabulary up."""
        self.model = model.eval()
        self.head = head
        rows = model.body.config.vocab_size
        self.vocab_size = rows if tokenizer is None else min(rows, tokenizer.vocab_size)
        self._holes = [] if tokenizer is None else tokenizer.holes
        positions = model.body.longest_text
        self.max_positions: int | None = positions if longest is None else min(longest, positions)
        self.device = model.body.like_states().device
        self.cache: KeyValueCache
        self.hidden_BTD: Tensor
        """Hidden states of the tokens read last."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        longest = max(map(len, prompts))
        starts = [longest - len(prompt) for prompt in prompts]
        ids = [[0] * start + list(prompt) for start, prompt in zip(starts, prompts, strict=True)]
        starts_B = torch.tensor(starts, device=self.device) if any(starts) else None
        config, like = self.model.body.config, self.model.body.like_states()
        slots = self.model.body.slots_before + longest + room
        self.cache = config.new_cache(len(prompts), slots, like, starts_B)
        # Logits of the last place only: those of a long prompt would be a large table.
        self.hidden_BTD = self._read(torch.tensor(ids, device=self.device))
        return self.logits(self.hidden_BTD[:, -1])

    @torch.inference_mode()
    def extend(self, ids_BT: Tensor) -> Tensor:
        self.hidden_BTD = self._read(ids_BT)
        return self.logits(self.hidden_BTD)

    @torch.inference_mode()
    def select(self, rows_R: Tensor) -> None:
        self.cache.select(rows_R)

    def truncate(self, length: int) -> None:
        """Forget what was read beyond the first ``length`` slots, padding counted."""
        self.cache.truncate(self.model.body.slots_before + length)

    @torch.inference_mode()
    def virtual_keys_values(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values (L, K, P, H) of the virtual tokens before every text, which don't depend
        on it; None: there are none."""
        body = self.model.body
        if body.virtual_tokens is None:
            return None
        before = body.slots_before
        cache = body.config.new_cache(1, before + 1, body.like_states())
        body(torch.zeros(1, 1, dtype=torch.long, device=self.device), cache=cache)
        tables = cache.keys_LFKSEH, cache.values_LFKSEH
        keys_LKPH, values_LKPH = (table[:, 0, :, :before, 0].clone() for table in tables)
        return keys_LKPH, values_LKPH

    def _read(self, ids_BT: Tensor) -> Tensor:
        return self.model.body(ids_BT, cache=self.cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) over the tokenizer's pieces."""
        if self.head is None:
            logits = self.model.logits(hidden)
        else:
            logits = self.model.capped(self.head(hidden))
        if logits.shape[-1] > self.vocab_size:
            logits = logits[..., : self.vocab_size].contiguous()
        if self._holes:
            logits[..., self._holes] = -math.inf
        return logits


class SourceDecoder(CausalDecoder):
    """A model that reads sources and writes from them."""

    def __init__(
        self,
        model: Seq2Seq | EncoderDecoderLM,
        *,
        start: Sequence[int],
        longest: int | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """start: the tokens that a target begins with; the others as ``CausalDecoder``'s."""
        super().__init__(model.eval().writer, longest=longest, head=head, tokenizer=tokenizer)
        self.reader, self.start, self.forced = model, list(start), len(start) - 1
        self.source: EncoderOutput

    @torch.inference_mode()
    def begin(self, sources: Sequence[Sequence[int]]) -> list[list[int]]:
        lengths = [len(source) for source in sources]
        ids = [[*source, *[0] * (max(lengths) - len(source))] for source in sources]
        self.source = self.reader.read(
            torch.tensor(ids, device=self.device), torch.tensor(lengths, device=self.device)
        )
        return [self.start[:] for _ in sources]

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        self.source.reset_beams()
        return super().prefill(prompts, room)

    @torch.inference_mode()
    def select(self, rows_R: Tensor) -> None:
        super().select(rows_R)
        self.source.select(rows_R)

    def _read(self, ids_BT: Tensor) -> Tensor:
        return self.model.body(ids_BT, cache=self.cache, source=self.source)


class RecomputeOnTruncate:
    """A language model that can't forget and reads its one row anew instead, which costs little
    where it looks at the last few tokens alone."""

    def __init__(self, model: DecoderRunner) -> None:
        self.model = model
        self.vocab_size, self.max_positions = model.vocab_size, model.max_positions
        self.ids: list[int] = []

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        (prompt,) = prompts
        self.ids = list(prompt)
        return self.model.prefill(prompts, room)

    def extend(self, ids_BT: Tensor) -> Tensor:
        self.ids += ids_BT[0].tolist()
        return self.model.extend(ids_BT.cpu())

    def select(self, rows_R: Tensor) -> None:
        self.model.select(rows_R)

    def truncate(self, length: int) -> None:
        if length < len(self.ids):
            del self.ids[length:]
            self.model.prefill([self.ids], 0)


def truncatable(decoder: DecoderRunner) -> TruncatableRunner:
    """The model itself if it can forget, else as one that can."""
    return decoder if isinstance(decoder, TruncatableRunner) else RecomputeOnTruncate(decoder)
