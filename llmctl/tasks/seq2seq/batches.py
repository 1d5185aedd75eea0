"""Sources, and targets shifted by one: the decoder is trained with the true target as its past
(teacher forcing, Williams and Zipser 1989).

B rows, S tokens of a source, T of a target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.packing import pack
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.heads.padding import rounded_up
from llmctl.tasks.instruct import batches as instruct
from llmctl.tasks.instruct.batches import InstructExample
from llmctl.tokenizers.frames import Frame
from llmctl.training.batches import TensorBatch

SEQ2SEQ_LENGTH_STEP = 4
"""Rows are as long as a multiple of this: see ``rounded_up``."""


@dataclass(frozen=True)
class EncodedPair:
    """A source and its target as ids, each with the tokens around it."""

    source: NDArray[np.int64]
    """With what stands around it: see ``Frame``."""
    target: NDArray[np.int64]
    """With what its writing starts with, and its end."""

    @property
    def lengths(self) -> tuple[int, int]:
        return len(self.source), len(self.target)

    @property
    def as_prefix(self) -> InstructExample:
        """The pair as one text, start source end target end, of which the target is scored."""
        start, target = self.target[:1], self.target[1:]
        ids = np.concatenate([start, self.source, target])
        return InstructExample(ids, np.arange(len(ids)) >= len(ids) - len(target))


@dataclass(frozen=True)
class Seq2SeqBatch(TensorBatch):
    """Sources, and targets shifted by one."""

    source_ids_BS: Tensor
    source_lengths_B: Tensor
    input_ids_BT: Tensor
    labels_BT: Tensor
    """The next token; IGNORED where there is none."""
    scored_B: NDArray[np.int64]
    """Labels of each row."""

    @property
    def num_positions(self) -> int:
        return self.source_ids_BS.numel() + self.input_ids_BT.numel()

    @property
    def scored(self) -> int:
        """Labels."""
        return int(self.scored_B.sum())

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"target_loss": self.scored}


def encode(
    source: Sequence[int], target: Sequence[int], *, frame: Frame, max_source: int, max_target: int
) -> EncodedPair:
    """A pair of ids with the tokens around them, cut to so many with these, but for the token that
    the target's writing starts with."""
    return EncodedPair(
        np.asarray(frame.source(source, max_source), dtype=np.int64),
        np.asarray(frame.target(target, max_target), dtype=np.int64),
    )


PREFIX_ROW = 256
"""Tokens of a row that prefixed pairs are packed into where they are shorter."""


def collated(
    pairs: Sequence[EncodedPair], style: str | None, token_bytes: NDArray[np.int64]
) -> TensorBatch:
    """Pairs as a batch for a decoder, or as prefixes for a language model.

    token_bytes: (V,), bytes of text of each token.
    """
    if style == "decoder":
        return collate(pairs)
    examples = [pair.as_prefix for pair in pairs]
    lengths = np.asarray([example.num_positions for example in examples])
    rows = pack(lengths, max(int(lengths.max()), PREFIX_ROW))
    return instruct.collate([[examples[n] for n in row] for row in rows], token_bytes=token_bytes)


def collate(pairs: Sequence[EncodedPair]) -> Seq2SeqBatch:
    """Pairs as a batch, padded behind."""
    lengths = [(source, target - 1) for source, target in (pair.lengths for pair in pairs)]
    S, T = (rounded_up(max(sizes), SEQ2SEQ_LENGTH_STEP) for sizes in zip(*lengths, strict=True))
    sources_BS = np.zeros((len(pairs), S), dtype=np.int64)
    inputs_BT = np.zeros((len(pairs), T), dtype=np.int64)
    labels_BT = np.full((len(pairs), T), IGNORED, dtype=np.int64)
    for row, (pair, (source, target)) in enumerate(zip(pairs, lengths, strict=True)):
        sources_BS[row, :source] = pair.source
        inputs_BT[row, :target] = pair.target[:-1]
        labels_BT[row, :target] = pair.target[1:]
    return Seq2SeqBatch(
        tokens_B=np.asarray([source + target for source, target in lengths]),
        source_ids_BS=torch.from_numpy(sources_BS),
        source_lengths_B=torch.tensor([source for source, _ in lengths]),
        input_ids_BT=torch.from_numpy(inputs_BT),
        labels_BT=torch.from_numpy(labels_BT),
        scored_B=np.asarray([target for _, target in lengths]),
    )
