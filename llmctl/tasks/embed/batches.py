"""Texts of a batch, packed in rows, and which of them are to be alike.

B rows, T tokens, S texts, E examples, C candidates: each example's positive, then all hard
negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.inference.embedding import PackedTexts, pack_texts
from llmctl.models.layers.packing import PackedSequences
from llmctl.training.batches import TensorBatch


@dataclass(frozen=True)
class EncodedTexts:
    """An example: texts as ids with special tokens, and numbers that equal texts share."""

    texts: tuple[NDArray[np.int64], ...]
    """The anchor, what belongs to it, and hard negatives."""
    keys: tuple[int, ...]
    """A number for each, the same for the same text."""
    score: float | None = None

    @property
    def tokens(self) -> int:
        """Those of all its texts."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class PackedBatch(TensorBatch):
    """Texts in rows, each to become a vector."""

    separable = False

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    packed: PackedSequences | None
    lengths_S: Tensor
    texts_B: NDArray[np.int64]
    place_S: Tensor
    """Where each text, in the order that the comparison knows, lies among those of the rows."""

    @property
    def num_positions(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def inputs(self) -> tuple[Tensor, Tensor, PackedSequences | None, Tensor]:
        """What an embedder takes."""
        return self.input_ids_BT, self.position_ids_BT, self.packed, self.lengths_S

    def rows(self, begin: int, stop: int) -> Self:
        """The texts of some of the rows; what is compared stays as it is."""
        first, last = (int(self.texts_B[:end].sum()) for end in (begin, stop))
        return replace(
            self,
            tokens_B=self.tokens_B[begin:stop],
            input_ids_BT=self.input_ids_BT[begin:stop],
            position_ids_BT=self.position_ids_BT[begin:stop],
            packed=self.packed and self.packed.rows(begin, stop),
            lengths_S=self.lengths_S[first:last],
            texts_B=self.texts_B[begin:stop],
        )


def packed_fields(rows: PackedTexts) -> dict[str, Any]:
    """The fields of a ``PackedBatch``."""
    return {
        "tokens_B": rows.tokens_B,
        "input_ids_BT": rows.input_ids_BT,
        "position_ids_BT": rows.position_ids_BT,
        "packed": rows.packed,
        "lengths_S": rows.lengths_S,
        "texts_B": rows.texts_B,
        "place_S": torch.from_numpy(rows.place_S),
    }


@dataclass(frozen=True)
class EmbedBatch(PackedBatch):
    """The texts of some examples: E anchors, then the C candidates."""

    false_EC: Tensor
    """Whether a candidate is no true negative of an anchor, its own positive apart."""
    owner_N: Tensor
    """The example that each hard negative belongs to."""
    scores_E: Tensor
    """How alike each pair is to be; of no use where there are no scores."""

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"embedding_loss": len(self.false_EC)}


def collate(
    examples: Sequence[EncodedTexts], pad: int, *, mask_false_negatives: bool = True
) -> EmbedBatch:
    """A batch of examples."""
    anchors, positives, *_ = zip(*(example.texts[:2] for example in examples), strict=True)
    negatives = [text for example in examples for text in example.texts[2:]]
    owner = [row for row, example in enumerate(examples) for _ in example.texts[2:]]
    rows = pack_texts([*anchors, *positives, *negatives], pad)
    return EmbedBatch(
        **packed_fields(rows),
        false_EC=torch.from_numpy(_false_negatives(examples, masked=mask_false_negatives)),
        owner_N=torch.tensor(owner, dtype=torch.int64),
        scores_E=torch.tensor([example.score or 0.0 for example in examples]),
    )


def _false_negatives(examples: Sequence[EncodedTexts], *, masked: bool) -> NDArray[np.bool_]:
    """Which candidates are no negatives of which anchors (E, C): the same text as the anchor or
    as its positive, or any positive of the same anchor elsewhere in the batch."""
    anchor_E, positive_E = (np.asarray([e.keys[role] for e in examples]) for role in (0, 1))
    further = [key for example in examples for key in example.keys[2:]]
    candidate_C = np.concatenate([positive_E, np.asarray(further, dtype=positive_E.dtype)])
    if not masked:
        return np.zeros((len(examples), len(candidate_C)), dtype=bool)
    false_EC = (candidate_C == anchor_E[:, None]) | (candidate_C == positive_E[:, None])
    false_EC[:, : len(examples)] |= anchor_E == anchor_E[:, None]
    np.fill_diagonal(false_EC, False)
    return false_EC
