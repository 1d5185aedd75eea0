"""Rows of which some are read from left to right, and the others both ways with hidden tokens.

In both kinds the label of a place is the token behind it, so that the network needs no other output
layer: from left to right each is scored; elsewhere those alone that are hidden, each at the place
before it. What is hidden and how many rows are of which kind is a pure function of the seed, the
batch's number and the rows'.

B rows, T tokens in a row, K of the rows from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.random import key_of, uniform
from llmctl.data.shards.windows import Rows, WindowBatches
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.tasks.causal_lm.batches import collate
from llmctl.tasks.gpt_bert.config import GptBertObjective
from llmctl.tasks.masked_lm.batches import MaskingVocab, apply_mask, select_masked
from llmctl.tokenizers import Tokenizer
from llmctl.training.batches import TensorBatch


@dataclass(frozen=True)
class GptBertBatch(TensorBatch):
    """Rows from left to right, then those that are read both ways."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    """The next token; IGNORED where it is not scored."""
    causal_B: NDArray[np.bool_]
    """Whether each row is read from left to right: the first ones are."""
    scored_B: NDArray[np.int64]
    """Labels of each row that are scored."""
    bytes_B: NDArray[np.int64]
    """Bytes of text that the scored labels of each row stand for."""
    causal_weight: float
    """What the mean loss of rows from left to right is multiplied with; that of the others with
    what is missing to 1."""

    @property
    def num_positions(self) -> int:
        return self.input_ids_BT.numel()

    @property
    def causal_rows(self) -> int:
        """How many of the rows are read from left to right, K."""
        return int(self.causal_B.sum())

    @property
    def loss_denominators(self) -> dict[str, int]:
        causal = int(self.scored_B[self.causal_B].sum())
        return {"lm_loss": causal, "mntp_loss": int(self.scored_B.sum()) - causal}


class GptBertBatches:
    """The batches of a split."""

    def __init__(
        self,
        windows: WindowBatches,
        tokenizer: Tokenizer,
        objective: GptBertObjective,
        *,
        seed: int,
        evenly: bool,
    ) -> None:
        """evenly: half of the rows are of each kind, whatever the objective says, so that both
        losses are measured on as much text."""
        self.windows, self._objective, self._seed = windows, objective, seed
        self._evenly = evenly
        self._bytes = tokenizer.token_bytes
        special = tokenizer.special
        self._vocabulary = MaskingVocab(
            cls=special["bos"],
            sep=special["eos"],
            mask=special["mask"],
            pad=special.get("pad", special["eos"]),
            ordinary=tokenizer.ordinary,
            continuation=tokenizer.continuation,
        )

    @property
    def per_epoch(self) -> int:
        return self.windows.batches_per_epoch

    def __call__(self, number: int) -> GptBertBatch:
        rows = self.windows.batch(number)
        share = 0.5 if self._evenly else self._objective.causal_share
        wanted = share * len(rows.ids)
        # The share is met on average where it comes to no whole number of rows.
        drawn = float(uniform(key_of(self._seed, "causal"), np.array([number]))[0])
        return self._collate(rows, min(int(wanted + drawn), len(rows.ids)))

    def _collate(self, rows: Rows, causal: int) -> GptBertBatch:
        stream, (B, width) = self.windows.stream, rows.ids.shape
        plain = collate(
            rows,
            start=stream.start,
            end=stream.end,
            token_bytes=self._bytes,
            document_mask=False,
        )
        ids, labels = plain.input_ids_BT.numpy(), plain.labels_BT.numpy()
        columns = np.broadcast_to(np.arange(width - 1), ids.shape)
        stream_ids = np.broadcast_to(rows.positions[:, None], ids.shape)
        # A row's first token has no place before it, and some of its last may not be of the split.
        fixed = self._vocabulary.is_special[ids] | (columns == 0)
        fixed |= columns >= rows.known[:, None]
        masking = self._objective.masking
        chosen = select_masked(
            ids, fixed, columns, stream_ids, masking, self._vocabulary, self._seed
        )
        chosen[:causal] = False
        hidden = apply_mask(ids, chosen, columns, stream_ids, masking, self._vocabulary, self._seed)
        is_next_hidden = np.zeros(ids.shape, dtype=bool)
        is_next_hidden[:, :-1] = chosen[:, 1:]
        is_next_hidden[:causal] = True
        labels = np.where(is_next_hidden, labels, IGNORED)
        scored = labels != IGNORED
        reads_on = np.arange(B) < causal
        share = self._objective.causal_share if self._evenly else causal / B
        return GptBertBatch(
            tokens_B=plain.tokens_B,
            input_ids_BT=torch.from_numpy(hidden),
            labels_BT=torch.from_numpy(labels),
            causal_B=reads_on,
            scored_B=scored.sum(1),
            bytes_B=(self._bytes[labels.clip(0)] * scored).sum(1),
            causal_weight=share,
        )
