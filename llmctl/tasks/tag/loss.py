"""The loss of tagging: cross-entropy with each word's tag; and how many entities were found.

B windows, T tokens, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from llmctl.data.tables.tags import entities
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.models.heads.tag import Tagger
from llmctl.tasks.tag.batches import TagBatch
from llmctl.training.batches import LossParts, SumAndCount


def tagging_loss(model: Tagger, batch: TagBatch, tags: Sequence[str] | None) -> LossParts:
    """Cross-entropy in nats. tags: by number, where they spell entities, whose F1 is then told at
    a validation: twice those found over all that are there and all that were answered."""
    logits_BTC = model(batch.input_ids_BT, batch.mask_BT).float()
    labels_BT = batch.labels_BT
    nll = F.cross_entropy(
        logits_BTC.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    count, answer_BT = int(batch.words_B.sum()), logits_BTC.detach().argmax(-1)
    metrics = {"accuracy": SumAndCount((answer_BT == labels_BT).sum(), count)}
    if tags is not None and not model.training:
        hits = there = 0
        for answers, labels in zip(answer_BT.cpu(), labels_BT.cpu(), strict=True):
            told = labels != IGNORED
            found, true = (
                set(entities([tags[n] for n in part[told].tolist()])) for part in (answers, labels)
            )
            hits, there = hits + 2 * len(found & true), there + len(found) + len(true)
        metrics["entity_f1"] = SumAndCount(torch.tensor(float(hits)), there)
    return LossParts({"tagging_loss": SumAndCount(nll, count)}, metrics)
