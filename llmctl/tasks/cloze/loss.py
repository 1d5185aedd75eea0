"""The loss of pattern-exploiting training: the true label's word is likelier than the others' at a
mask.

Words of one piece each: cross-entropy over their logits (Schick and Schütze 2021, §3.1). Words of
several: their pieces' log-probabilities are added, all read at once, which is no distribution, so
that each other word is to be less likely by a factor e (Schick and Schütze 2021b, §3.1):

    Σ over y' ≠ y of max(0, 1 − log q(y) + log q(y'))

B examples, T tokens, K masks, C labels, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tasks.cloze.batches import ClozeBatch
from llmctl.training.batches import LossParts, SumAndCount


class LabelWords:
    """The pieces of the labels' words, padded."""

    def __init__(self, words: Sequence[NDArray[np.int64]]) -> None:
        self.longest = max(map(len, words))
        pieces_CK = np.zeros((len(words), self.longest), dtype=np.int64)
        there_CK = np.zeros(pieces_CK.shape, dtype=bool)
        for number, word in enumerate(words):
            pieces_CK[number, : len(word)] = word
            there_CK[number, : len(word)] = True
        self.pieces_CK, self.there_CK = torch.from_numpy(pieces_CK), torch.from_numpy(there_CK)


def cloze_scores(model: MaskedLM, batch: ClozeBatch, words: LabelWords) -> Tensor:
    """How likely each label's word is (B, C): the logits of words of one piece, else the sums of
    log-probabilities of the pieces."""
    device = batch.input_ids_BT.device
    whole = bool(batch.mask_BT.all())
    hidden_BTD = model.body(batch.input_ids_BT, None, None if whole else batch.mask_BT)
    rows_B1 = torch.arange(len(batch), device=device)[:, None]
    places_BK = batch.start_B[:, None] + torch.arange(words.longest, device=device)
    hidden_BKD = hidden_BTD[rows_B1, places_BK]
    logits_BKV = model.token_logits(hidden_BKD.flatten(0, 1)).float().unflatten(0, (len(batch), -1))
    pieces_CK = words.pieces_CK.to(device)
    if words.longest == 1:
        return logits_BKV[:, 0][:, pieces_CK[:, 0]]
    logs_BKV = logits_BKV.log_softmax(-1)
    each_BCK = logs_BKV[:, torch.arange(words.longest, device=device), pieces_CK]
    return each_BCK.masked_fill(~words.there_CK.to(device), 0.0).sum(-1)


def cloze_loss(model: MaskedLM, batch: ClozeBatch, words: LabelWords) -> LossParts:
    """The loss, in nats, and how many labels were right."""
    scores_BC, labels_B = cloze_scores(model, batch, words), batch.labels_B
    if words.longest == 1:
        total = F.cross_entropy(scores_BC, labels_B, reduction="sum")
    else:
        true_B1 = scores_BC.gather(1, labels_B[:, None])
        lost_BC = F.relu(1.0 - true_B1 + scores_BC)
        total = lost_BC.scatter(1, labels_B[:, None], 0.0).sum()
    correct = (scores_BC.detach().argmax(-1) == labels_B).sum()
    return LossParts(
        {"cloze_loss": SumAndCount(total, len(batch))},
        {"accuracy": SumAndCount(correct, len(batch))},
    )
