"""One text in an engine: what is asked of it, where it is, what has been found of its prompt.

T tokens, V vocabulary, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmctl.inference.decoding.rows import SequenceState
from llmctl.inference.engine.prefixes import PrefixBlock
from llmctl.inference.engine.requests import Constraint, EngineRequest, Ranked, Scored
from llmctl.models.layers.sequences import KV_BLOCK, SequenceCache


@dataclass(eq=False)
class EngineSequence:
    """A sample of a request."""

    request: EngineRequest
    number: int
    """The request's."""
    sample: int
    state: SequenceState
    constraint: Constraint | None
    cache: SequenceCache | None = None
    """None: it has no place."""
    held: list[PrefixBlock] = field(default_factory=list)
    """Kept blocks that it begins with."""
    siblings: list[EngineSequence] = field(default_factory=list)
    """The other samples, which wait until the prompt is read."""
    age: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that were kept when it came to its place."""
    prompt_scores: list[Scored] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    """Tokens that may follow, to be read in the next step with the last one."""
    guess_probs: list[Tensor] = field(default_factory=list)
    """The distribution (1, V) that each guess was drawn from, where it was drawn."""
    _pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state.on_text = self._pieces.append

    @property
    def unread(self) -> int:
        """Tokens whose keys and values are not there."""
        return len(self.state.ids) - (0 if self.cache is None else self.cache.length)

    @property
    def most_slots(self) -> int:
        """Slots that it may come to need: the last token is never read."""
        return -(-(self.state.start + self.state.max_new_tokens) // KV_BLOCK) * KV_BLOCK

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are still asked for."""
        asked = self.request.prompt_top is not None and self.sample == 0
        return asked and self.state.new == 0

    def drop_guesses(self) -> None:
        """Nothing is guessed any more."""
        self.guesses, self.guess_probs = [], []

    def append(self, token: int, log_prob: float) -> str:
        """Write a token; returns the text that has become certain."""
        self.state.append(token, log_prob)
        if self.constraint is not None and self.constraint.accept(token):
            self.state.complete()
        text = "".join(self._pieces)
        self._pieces.clear()
        return text


def by_rules(sequences: Sequence[EngineSequence], *, guessing: bool = False) -> list[list[int]]:
    """Places of texts whose tokens are chosen, or guessed, alike; where they are chosen, of one
    with a constraint, or with guesses that were drawn, alone."""
    groups: dict[object, list[int]] = {}
    for place, sequence in enumerate(sequences):
        rules = sequence.request.rules
        alone = not guessing and (sequence.constraint or sequence.guess_probs)
        alike = (rules.config, rules.ends)
        groups.setdefault(id(sequence) if alone else alike, []).append(place)
    return list(groups.values())


def sequences_of(request: EngineRequest, number: int, room: int) -> Iterator[EngineSequence]:
    """A request's samples. room: new tokens of each at most."""
    for sample in range(request.rules.config.num_samples):
        state = SequenceState.begin(request.rules, request.number, sample, request.prompt, room)
        constraint = request.constraint() if request.constraint is not None else None
        yield EngineSequence(request, number, sample, state, constraint)


def scored_prompt(sequence: EngineSequence, logits_TV: Tensor, tokens: int) -> list[Scored]:
    """The prompt's tokens that follow those just read, with their log-probabilities; before the
    first of them the prompt's own first, which follows nothing."""
    assert sequence.cache is not None
    ids, top = sequence.state.ids, sequence.request.prompt_top or 0
    stop = sequence.cache.length
    begin = stop - tokens
    targets = ids[begin + 1 : stop + 1]
    found = [] if begin else [Scored(ids[0], None)]
    if targets:
        log_probs_TV = logits_TV[: len(targets)].log_softmax(-1)
        chosen_T1 = torch.tensor(targets, device=log_probs_TV.device)[:, None]
        log_probs = log_probs_TV.gather(-1, chosen_T1)[:, 0].tolist()
        ranked = ranked_of(logits_TV[: len(targets)], top)
        found += map(Scored, targets, log_probs, ranked)
    return found


def ranked_of(logits_RV: Tensor, top: int) -> list[Ranked]:
    """The likeliest tokens of each row."""
    if not top:
        return [()] * len(logits_RV)
    best = logits_RV.log_softmax(-1).topk(min(top, logits_RV.shape[-1]))
    return [
        tuple(zip(tokens, values, strict=True))
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
