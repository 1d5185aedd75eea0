"""Finetune on preferences: pairs of answers to a model that gives the better one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from llmctl.config import Config
from llmctl.data.tables.conversations import Conversation
from llmctl.data.tables.preferences import PreferencePair, read_preferences
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.dpo.answers import EncodedAnswer, paired_rows
from llmctl.tasks.dpo.loss import PairBatch, PairLoss, dpo_loss
from llmctl.tasks.dpo.preferring import PreferringConfig, PreferringTask, looked_up
from llmctl.training.batches import LossParts

Pair = tuple[EncodedAnswer, EncodedAnswer]


class DpoObjective(Config):
    """How pairs of answers become a loss."""

    loss: PairLoss = "sigmoid"
    """What becomes of the difference of the two answers' log-ratios: sigmoid, DPO's, or ipo, which
    wants it at 1 / (2 β) and so can't drift for ever."""
    beta: float = Field(0.1, gt=0)
    """How strongly the model is held to the reference, β: lower lets it go further."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the preferences taken to be wrong, ε; for the loss sigmoid."""
    length_normalised: bool | None = None
    """Whether each answer's log-ratio is divided by its tokens. Unset: of ipo alone, as its authors
    did."""

    @model_validator(mode="after")
    def _check_smoothing(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(
                f"label_smoothing is for the loss sigmoid, and this is {self.loss}; leave it out"
            )
        return self

    @property
    def by_length(self) -> bool:
        """Whether ratios are divided by their answers' tokens."""
        return self.loss == "ipo" if self.length_normalised is None else self.length_normalised


class DpoConfig(PreferringConfig):
    """Everything that decides a finetuning on pairs of answers."""

    task: Literal["dpo"] = "dpo"
    """What is learned."""
    objective: DpoObjective = DpoObjective()


class DpoTask(PreferringTask):
    """Pairs of answers as padded batches, and a language model to train on them."""

    config: DpoConfig
    config_type = DpoConfig
    what = "pairs"

    def _entries(self, reading: ReadOptions) -> Iterator[PreferencePair]:
        self._pairs: list[Pair] = []
        return read_preferences(self.data, reading=reading)

    def _conversations(self, example: PreferencePair) -> Sequence[Conversation]:
        return example.answered(example.chosen), example.answered(example.rejected)

    def _take(self, example: PreferencePair, answers: Sequence[EncodedAnswer]) -> bool:
        chosen, rejected = answers
        if np.array_equal(chosen.ids, rejected.ids):
            return False
        self._pairs.append((chosen, rejected))
        return True

    def _tell(self, counts: Counter[str], reporter: Reporter) -> None:
        super()._tell(counts, reporter)
        if same := counts["the same"]:
            if not self._pairs:
                raise InputError(
                    f"{self.data}: the two answers of every pair are the same within "
                    f"{self._max_length} tokens; raise data.max_length"
                )
            reporter.note(
                f"left out {same:,} of {counts['read']:,} pairs, whose answers are the same within "
                f"{self._max_length} tokens"
            )

    @property
    def answers(self) -> Sequence[EncodedAnswer]:
        return [answer for pair in self._pairs for answer in pair]

    @property
    def _lengths(self) -> list[int]:
        return [max(len(answer.ids) for answer in pair) for pair in self._pairs]

    def loss(self, model: CausalLM, batch: PairBatch) -> LossParts:
        objective = self.config.objective
        return dpo_loss(
            model,
            batch,
            looked_up(self.reference.view(-1, 2), batch.pair_B),
            kind=objective.loss,
            beta=objective.beta,
            label_smoothing=objective.label_smoothing,
            length_normalised=objective.by_length,
        )

    def _collated(self, numbers: Sequence[int]) -> PairBatch:
        pairs = [self._pairs[number] for number in numbers]
        return PairBatch(*paired_rows(pairs), torch.tensor(list(numbers)))
