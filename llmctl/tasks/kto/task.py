"""Finetune on ratings: answers with a thumb up or down, which need no pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from llmctl.config import Config
from llmctl.data.random import key_of, permute
from llmctl.data.tables.conversations import Conversation
from llmctl.data.tables.preferences import RatedAnswer, read_ratings
from llmctl.data.text.decoding import ReadOptions
from llmctl.errors import InputError
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.dpo.answers import EncodedAnswer, paired_rows
from llmctl.tasks.dpo.preferring import PreferringConfig, PreferringTask, looked_up
from llmctl.tasks.kto.loss import KtoLoss, RatedBatch

BALANCED = (1.0, 4 / 3)
"""What the desirable answers' weights should add up to, for each 1 of the undesirable ones'
(Ethayarajh et al. 2024, eq. 9)."""


class KtoObjective(Config):
    """How rated answers become a loss."""

    beta: float = Field(0.1, gt=0)
    """How strongly the model is held to the reference, β: lower lets it go further."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of an answer with a thumb up, λ_D."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of an answer with a thumb down, λ_U."""


class KtoConfig(PreferringConfig):
    """Everything that decides a finetuning on rated answers."""

    task: Literal["kto"] = "kto"
    """What is learned."""
    objective: KtoObjective = KtoObjective()


class KtoTask(PreferringTask):
    """Rated answers as padded batches, and a language model to train on them."""

    config: KtoConfig
    config_type = KtoConfig
    what = "rated answers"

    def _entries(self, reading: ReadOptions) -> Iterator[RatedAnswer]:
        self._own: list[EncodedAnswer] = []
        self._desirable: list[bool] = []
        return read_ratings(self.data, reading=reading)

    def _conversations(self, example: RatedAnswer) -> Sequence[Conversation]:
        return (example.conversation,)

    def _take(self, example: RatedAnswer, answers: Sequence[EncodedAnswer]) -> bool:
        self._own.extend(answers)
        self._desirable.append(example.desirable)
        return True

    def _tell(self, counts: Counter[str], reporter: Reporter) -> None:
        super()._tell(counts, reporter)
        if len(self._own) < 2:
            raise InputError(
                f"{self.data} has one rated answer, and each is compared with another prompt's; "
                "give more"
            )
        self._other = self._mismatched()
        self._tell_balance(reporter)

    def _mismatched(self) -> list[EncodedAnswer]:
        """Each prompt with another's answer: the next in a random order."""
        count = len(self._own)
        order = permute(key_of(self.config.seed, "other answers"), count, np.arange(count))
        following = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
        others = []
        for number, own in enumerate(self._own):
            other = self._own[following[number]]
            ids = np.concatenate([own.ids[: own.start], other.ids[other.start :]])
            others.append(replace(own, ids=ids[: self._max_length]))
        return others

    def _tell_balance(self, reporter: Reporter) -> None:
        """Say where good and bad answers weigh too differently."""
        objective, good = self.config.objective, sum(self._desirable)
        bad = len(self._desirable) - good
        if not good or not bad:
            kind = "a thumb down" if bad else "a thumb up"
            reporter.note(f"all answers have {kind}: the model learns little of what to do instead")
            return
        ratio = objective.desirable_weight * good / (objective.undesirable_weight * bad)
        low, high = BALANCED
        if not low * 0.99 <= ratio <= high * 1.01:
            weight = objective.undesirable_weight * bad / good
            reporter.note(
                f"{good:,} answers have a thumb up and {bad:,} a thumb down; the method's authors "
                f"would set objective.desirable_weight to {weight:.2g} up to {high * weight:.2g}"
            )

    @property
    def answers(self) -> Sequence[EncodedAnswer]:
        return [*self._own, *self._other]

    @property
    def _lengths(self) -> list[int]:
        pairs = zip(self._own, self._other, strict=True)
        return [max(len(own.ids), len(other.ids)) for own, other in pairs]

    @property
    def loss(self) -> KtoLoss:
        """What answers are trained by, whose rows are compared."""
        objective = self.config.objective
        return KtoLoss(
            self._reference_of,
            beta=objective.beta,
            desirable_weight=objective.desirable_weight,
            undesirable_weight=objective.undesirable_weight,
        )

    def _reference_of(self, numbers_B: Tensor) -> Tensor:
        return looked_up(self.reference.view(2, -1).T, numbers_B)

    def _collated(self, numbers: Sequence[int]) -> RatedBatch:
        pairs = [(self._own[number], self._other[number]) for number in numbers]
        desirable = torch.tensor([self._desirable[number] for number in numbers])
        return RatedBatch(*paired_rows(pairs), torch.tensor(list(numbers)), desirable)
