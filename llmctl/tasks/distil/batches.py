"""Texts of a batch for a student and its teacher, padded.

B texts, T tokens, M scored places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from llmctl.data.tables.encoded import EncodedExample
from llmctl.models.heads.classify import EXAMPLE_LENGTH_STEP
from llmctl.models.heads.padding import read_padded, rounded_up
from llmctl.models.spec import Backbone
from llmctl.tasks.classify.batches import ExampleBatch, collate


@dataclass(frozen=True)
class DistilBatch(ExampleBatch):
    """Padded texts. ``labels_B`` are their places in what the teacher answered."""

    counts: tuple[tuple[str, int], ...]
    """What each of the losses is divided by in the whole batch."""

    @property
    def loss_denominators(self) -> dict[str, int]:
        return dict(self.counts)


@dataclass(frozen=True)
class ComparedBatch(DistilBatch):
    """Texts that are compared with one another: taken whole."""

    separable = False


@dataclass(frozen=True)
class TokenBatch(DistilBatch):
    """Padded texts of which tokens are to be told."""

    targets_BT: Tensor
    """The token that is to be told at each place; IGNORED elsewhere."""
    place_B: Tensor
    """Where each text stands in its batch."""
    batch_number: int = 0
    """By which a student draws what it writes."""
    on_policy: bool = False
    """Whether it writes itself, from the rows as beginnings."""


def padded(examples: Sequence[EncodedExample], pad: int, longest: int) -> dict[str, Any]:
    """The fields of an ``ExampleBatch``, padded to a multiple of eight tokens, at most ``longest``:
    all models that read them then see the same places."""
    batch = collate(examples, pad)
    T = batch.input_ids_BT.shape[1]
    missing = min(rounded_up(T, EXAMPLE_LENGTH_STEP), longest) - T
    return {
        "tokens_B": batch.tokens_B,
        "input_ids_BT": F.pad(batch.input_ids_BT, (0, missing), value=pad),
        "segment_ids_BT": F.pad(batch.segment_ids_BT, (0, missing)),
        "mask_BT": F.pad(batch.mask_BT, (0, missing), value=False),
        "labels_B": batch.labels_B,
    }


def read(body: Backbone, batch: ExampleBatch) -> Tensor:
    """Hidden states (B, T, D) of padded texts."""
    if body.kind == "decoder":
        return read_padded(body, batch.input_ids_BT, batch.mask_BT)
    whole = bool(batch.mask_BT.all())
    hidden_BTD: Tensor = body(
        batch.input_ids_BT, batch.segment_ids_BT, None if whole else batch.mask_BT
    )
    return hidden_BTD
