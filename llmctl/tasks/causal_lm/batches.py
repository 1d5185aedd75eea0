"""Rows of tokens and what follows each.

Documents lie end to end in rows without padding. Their end is predicted too, the start of the next
is not. With ``document_mask`` attention stays inside a document and positions start anew in each.

B rows, T tokens in a row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.shards.windows import Rows, WindowBatches
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.layers.packing import PackedSequences
from llmctl.tasks.causal_lm.fim import FillInTheMiddle
from llmctl.tokenizers import Tokenizer
from llmctl.training.batches import TensorBatch


@dataclass(frozen=True)
class CausalBatch(TensorBatch):
    """Rows of tokens and what follows each."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    """The next token; IGNORED where it is not scored."""
    scored_B: NDArray[np.int64]
    """Labels of each row that are scored."""
    bytes_B: NDArray[np.int64]
    """Bytes of text that the scored labels of each row stand for."""
    packed: PackedSequences | None = None
    """What attention stays inside of; None: causal over the row."""
    position_ids_BT: Tensor | None = None

    @property
    def num_positions(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def scored(self) -> int:
        """Labels that are scored."""
        return int(self.scored_B.sum())

    @property
    def scored_bytes(self) -> int:
        """Bytes of text that the scored labels stand for."""
        return int(self.bytes_B.sum())

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"lm_loss": self.scored}


class CausalBatches:
    """The batches of a split."""

    def __init__(
        self,
        windows: WindowBatches,
        tokenizer: Tokenizer,
        *,
        document_mask: bool,
        fim: FillInTheMiddle | None = None,
    ) -> None:
        """fim: what lays parts of rows out anew."""
        self.windows, self._fim = windows, fim
        self._bytes, self._document_mask = tokenizer.token_bytes, document_mask

    @property
    def per_epoch(self) -> int:
        return self.windows.batches_per_epoch

    def __call__(self, number: int) -> CausalBatch:
        stream, rows = self.windows.stream, self.windows.batch(number)
        return collate(
            rows if self._fim is None else self._fim(rows),
            start=stream.start,
            end=stream.end,
            token_bytes=self._bytes,
            document_mask=self._document_mask,
        )

    def fim_counts(self, number: int) -> NDArray[np.int64]:
        """Parts of documents in the rows of a batch, how many of these are laid out for
        fill-in-the-middle, and how many with the suffix first."""
        assert self._fim is not None
        return self._fim.counts(self.windows.batch(number))


def collate(
    rows: Rows, *, start: int, end: int, token_bytes: NDArray[np.int64], document_mask: bool
) -> CausalBatch:
    """Rows as a batch.

    start, end: the tokens around a document. token_bytes: (V,), bytes of text of each token.
    """
    inputs, labels = rows.ids[:, :-1], rows.ids[:, 1:].copy()
    unknown = np.arange(1, rows.ids.shape[1]) >= rows.known[:, None]
    labels[unknown] = IGNORED
    if start != end:  # what follows a document's end is not its continuation
        labels[inputs == end] = IGNORED
    scored = labels != IGNORED
    texts = positions = None
    if document_mask:
        begins = rows.begins[:, :-1]
        texts = PackedSequences.of(begins)
        positions = torch.from_numpy(np.arange(inputs.shape[1]) - np.maximum(begins, 0))
    return CausalBatch(
        tokens_B=np.minimum(rows.known - 1, inputs.shape[1]),
        input_ids_BT=torch.from_numpy(inputs.copy()),
        labels_BT=torch.from_numpy(labels),
        scored_B=scored.sum(1),
        bytes_B=(token_bytes[labels.clip(0)] * scored).sum(1),
        packed=texts,
        position_ids_BT=positions,
    )
