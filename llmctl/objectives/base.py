"""The contract between objectives and the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

IGNORED = -100
"""Label of what is not scored: PyTorch's and Hugging Face's."""


def rounded_up(size: int, step: int) -> int:
    """The next multiple of ``step``.

    For each new shape of a bf16 product a processor compiles a kernel, which takes longer than
    many products (about 6 ms and 1 MB): sizes that vary from batch to batch are rounded up.
    """
    return -(-size // step) * step


@dataclass(frozen=True)
class Ratio:
    """A sum and its count, added across batches before dividing: a mean of means weighs
    tokens wrongly."""

    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.count, 1)


@dataclass(frozen=True)
class LossParts:
    """``losses`` are summed, each divided by its own count, and minimised; ``metrics`` are
    reported."""

    losses: dict[str, Ratio]
    metrics: dict[str, Ratio] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return torch.stack([part.mean for part in self.losses.values()]).sum()


@dataclass(frozen=True)
class TensorBatch:
    """Base of batches: tensors that move to a device together, and how full they are."""

    real_tokens: int
    """Tokens that are not padding."""
    slots: int
    """Tokens with padding."""

    def to(self, device: torch.device) -> Self:
        moved: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            moved[entry.name] = (
                value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            )
        return type(self)(**moved)


class Objective(Protocol):
    """A trainable module with its loss."""

    def loss(self, batch: TensorBatch) -> LossParts:
        """The loss of a batch, as sums and counts."""
        ...
