"""The contract between a task and the trainer: batches, and a loss as sums and counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmctl.models.layers.packing import PackedSequences


@dataclass(frozen=True)
class SumAndCount:
    """A sum and its count, added across batches before dividing: a mean of means weighs
    tokens wrongly."""

    total: Tensor
    count: int
    weight: float = 1.0
    """What a loss's mean is multiplied with in what is minimised."""

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.count, 1)


@dataclass(frozen=True)
class LossParts:
    """``losses`` are summed, each divided by its own count, times its weight, and minimised;
    ``metrics`` are reported."""

    losses: dict[str, SumAndCount]
    metrics: dict[str, SumAndCount] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return torch.stack([part.weight * part.mean for part in self.losses.values()]).sum()


@dataclass(frozen=True)
class TensorBatch(ABC):
    """Base of batches: what belongs to rows of tokens, to be moved and divided together."""

    separable: ClassVar[bool] = True
    """Whether its loss is the sum of its rows', so that it may be taken in parts, one after another
    or by several processes. One whose rows are compared with each other is taken whole, but for a
    ``ComparedLoss``, of which the part before the comparison is divided."""
    tokens_B: NDArray[np.int64]
    """Tokens of each row that are not padding."""

    def __len__(self) -> int:
        return len(self.tokens_B)

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.tokens_B.sum())

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """Tokens with padding."""

    @property
    @abstractmethod
    def loss_denominators(self) -> dict[str, int]:
        """What each of the losses is divided by. A batch that is taken in parts, one
        after another or by several processes, is divided by that of the whole."""

    def rows(self, begin: int, stop: int) -> Self:
        """The batch of some of the rows."""
        return self._each(
            lambda part: (
                part.rows(begin, stop) if isinstance(part, PackedSequences) else part[begin:stop]
            ),
            also=np.ndarray,
        )

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The batch in memory that an accelerator reads while others compute."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any], also: type | None = None) -> Self:
        kinds = (Tensor, PackedSequences, also) if also else (Tensor, PackedSequences)
        parts = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return replace(
            self, **{name: change(part) for name, part in parts.items() if isinstance(part, kinds)}
        )


class Batches(Protocol):
    """The batches of a split, by number."""

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the split; 0 if it has no documents."""
        ...

    def __call__(self, number: int) -> TensorBatch: ...


class ComparedLoss(ABC):
    """A loss that compares what the rows of a batch come to: the network takes the rows in any
    parts and by however many processes, the comparison takes all of them at once."""

    @abstractmethod
    def encode(self, model: Any, batch: Any) -> Tensor:
        """What some rows come to, one or several entries (S, …) for each, in the rows' order."""

    @abstractmethod
    def compare(self, encoded: Tensor, batch: Any) -> LossParts:
        """The loss of the whole batch, from the entries (S, …) of all its rows."""

    def __call__(self, model: Any, batch: Any) -> LossParts:
        return self.compare(self.encode(model, batch), batch)


class Objective(nn.Module):
    """A model and its loss, as a forward pass from a batch: what a trainer trains, and what is
    wrapped where several processes do."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], LossParts]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: TensorBatch, *, encode: bool = False) -> Any:
        """The loss of a batch, as sums and counts. encode: of a ``ComparedLoss``, what its rows
        come to."""
        if encode:
            assert isinstance(self.loss, ComparedLoss)
            return self.loss.encode(self.model, batch)
        return self.loss(self.model, batch)
