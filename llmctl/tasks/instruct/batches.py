"""Instruction tuning: next tokens of the answers, given all that was said before them
(Ouyang et al. 2022, §3.5).

The model is ``CausalLM`` itself. Several conversations lie in one row; each sees itself only and
its positions start anew, so that its loss is what it would be alone.

B rows, T tokens in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.heads.padding import rounded_up
from llmctl.models.layers.packing import PackedSequences
from llmctl.tasks.causal_lm.batches import CausalBatch
from llmctl.tokenizers.chat_template import EncodedChat

PACKED_LENGTH_STEP = 64
"""Rows are as long as a multiple of this: see ``rounded_up``."""


@dataclass(frozen=True)
class InstructExample:
    """A conversation as ids, and which of them are the answers'; at least one but the first is."""

    ids: NDArray[np.int64]
    scored: NDArray[np.bool_]

    @property
    def num_positions(self) -> int:
        """Tokens that it takes in a row: the last is predicted only."""
        return len(self.ids) - 1


def fit(chat: EncodedChat, max_length: int) -> InstructExample | None:
    """A conversation of at most ``max_length`` tokens: cut behind the last answer that fits, or
    within the first; None if not even that begins before."""
    length = len(chat.ids)
    if length > max_length:
        whole = [stop for stop in chat.answer_stops if stop <= max_length]
        length = whole[-1] if whole else max_length
    example = InstructExample(chat.ids[:length], chat.scored[:length])
    return example if example.scored[1:].any() else None


def collate(
    rows: Sequence[Sequence[InstructExample]], *, token_bytes: NDArray[np.int64]
) -> CausalBatch:
    """Rows of conversations as a batch. token_bytes: (V,), bytes of text of each token."""
    longest = max(sum(example.num_positions for example in row) for row in rows)
    shape = (len(rows), rounded_up(longest, PACKED_LENGTH_STEP))
    ids_BT = np.zeros(shape, dtype=np.int64)
    labels_BT = np.full(shape, IGNORED, dtype=np.int64)
    positions_BT = np.zeros(shape, dtype=np.int64)
    # What fills a row is a text of its own, as a token must attend to something.
    numbers_BT = np.full(shape, -1)
    for place, row in enumerate(rows):
        begin = 0
        for number, example in enumerate(row):
            span = slice(begin, begin + example.num_positions)
            ids_BT[place, span] = example.ids[:-1]
            labels_BT[place, span] = np.where(example.scored[1:], example.ids[1:], IGNORED)
            positions_BT[place, span] = np.arange(example.num_positions)
            numbers_BT[place, span] = number
            begin = span.stop
    scored = labels_BT != IGNORED
    return CausalBatch(
        tokens_B=(numbers_BT >= 0).sum(1),
        input_ids_BT=torch.from_numpy(ids_BT),
        labels_BT=torch.from_numpy(labels_BT),
        scored_B=scored.sum(1),
        bytes_B=(token_bytes[labels_BT.clip(0)] * scored).sum(1),
        packed=PackedSequences.of(numbers_BT),
        position_ids_BT=torch.from_numpy(positions_BT),
    )
