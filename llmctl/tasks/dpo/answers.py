"""Answers to prompts as padded rows, of which only the answer's tokens count, and their
log-probability under a model.

A answers, T tokens, M tokens of answers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmctl.data.tables.conversations import Conversation
from llmctl.errors import InputError
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.heads.log_probs import token_log_probs
from llmctl.models.heads.padding import read_padded, rounded_up
from llmctl.tokenizers.chat_template import ChatTemplate

LENGTH_MULTIPLE = 16
"""Rows are as long as a multiple of this: see ``rounded_up``."""


@dataclass(frozen=True)
class EncodedAnswer:
    """A conversation as ids, and where its last answer begins."""

    ids: NDArray[np.int64]
    start: int
    cut: bool = False
    """Whether the answer was longer."""

    @property
    def tokens(self) -> int:
        """Tokens of the answer, its end among them."""
        return len(self.ids) - self.start


def encode_answer(
    conversation: Conversation, template: ChatTemplate, max_length: int
) -> EncodedAnswer | None:
    """The ids of a conversation by its template, cut at ``max_length``; None where its last answer
    doesn't begin before. Raises InputError where the template refuses it."""
    try:
        chat = template.encode(conversation.messages)
    except InputError as error:
        raise InputError(f"{conversation.source}: {error}") from None
    before = chat.answer_stops[-2] if len(chat.answer_stops) > 1 else 0
    scored = np.flatnonzero(chat.scored[before:])
    start = before + int(scored[0])
    # The first token of all is predicted by none.
    if start >= max_length or not start:
        return None
    return EncodedAnswer(chat.ids[:max_length], start, len(chat.ids) > max_length)


@dataclass(frozen=True)
class AnswerRows:
    """Answers as tensors."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The next token; IGNORED where it is not the answer's."""
    mask: NDArray[np.bool_]
    """Where a token is no padding."""


def answer_rows(answers: Sequence[EncodedAnswer]) -> AnswerRows:
    """Answers (A,) as rows (A, T), filled up to one length."""
    shape = len(answers), rounded_up(max(len(a.ids) for a in answers) - 1, LENGTH_MULTIPLE)
    input_ids_AT = np.zeros(shape, dtype=np.int64)
    labels_AT = np.full(shape, IGNORED, dtype=np.int64)
    mask_AT = np.zeros(shape, dtype=bool)
    for row, answer in enumerate(answers):
        length = len(answer.ids) - 1
        input_ids_AT[row, :length] = answer.ids[:-1]
        labels_AT[row, answer.start - 1 : length] = answer.ids[answer.start :]
        mask_AT[row, :length] = True
    return AnswerRows(input_ids_AT, labels_AT, mask_AT)


def paired_rows(
    pairs: Sequence[tuple[EncodedAnswer, EncodedAnswer]],
) -> tuple[NDArray[np.int64], Tensor, Tensor, Tensor]:
    """Pairs of answers as tokens of each pair (B,), and input_ids, labels and mask (B, 2, T)."""
    rows = answer_rows([answer for pair in pairs for answer in pair])
    ids, labels, mask = (
        torch.from_numpy(part.reshape(len(pairs), 2, -1))
        for part in (rows.input_ids, rows.labels, rows.mask)
    )
    return rows.mask.sum(1).reshape(-1, 2).sum(1), ids, labels, mask


def answer_log_probs(
    model: Any, input_ids_AT: Tensor, labels_AT: Tensor, mask_AT: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer given what is said before it (A,), in nats, and its tokens
    (A,)."""
    hidden_ATD = read_padded(model.body, input_ids_AT, mask_AT)
    scored_AT = labels_AT != IGNORED
    log_probs_M, _ = token_log_probs(model, hidden_ATD[scored_AT], labels_AT[scored_AT])
    rows_M = torch.nonzero(scored_AT)[:, 0]
    total_A = log_probs_M.new_zeros(len(labels_AT)).index_add(0, rows_M, log_probs_M)
    return total_A, scored_AT.sum(1)
