"""A linear layer on a text's vector: what a logistic regression on an embedder's vectors makes of
them (SetFit, Tunstall et al. 2022).

B examples, T tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.models.heads.base import Head
from llmctl.models.heads.classify import CLASSES
from llmctl.models.heads.embed import Embedder, EmbedderHead, Pooling, pooled
from llmctl.models.heads.padding import read_padded
from llmctl.models.spec import Backbone


class PooledClassifier(nn.Module):
    """A body, a pooling and a linear layer to the classes; it takes what a classifier does."""

    def __init__(
        self, body: Backbone, num_classes: int, pooling: Pooling = "mean", *, normalize: bool = True
    ) -> None:
        """normalize: the layer sees vectors of length 1."""
        super().__init__()
        self.body, self.pooling, self.normalize = body, pooling, normalize
        self.output = nn.Linear(body.config.hidden_size, num_classes)

    def forward(self, input_ids_BT: Tensor, segment_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits (B, C). mask_BT: true where a token is no padding, which is on the right. A body's
        segments are as where vectors are made: all the first."""
        if self.body.kind == "decoder":
            hidden_BTD = read_padded(self.body, input_ids_BT, mask_BT)
        else:
            whole = bool(mask_BT.all())
            hidden_BTD = self.body(input_ids_BT, None, None if whole else mask_BT)
        vectors_BD = pooled(hidden_BTD[mask_BT].float(), mask_BT.sum(1), self.pooling)
        if self.normalize:
            vectors_BD = F.normalize(vectors_BD, dim=-1)
        with torch.autocast(vectors_BD.device.type, enabled=False):
            return self.output(vectors_BD)


class PooledClassifierHead(Head):
    """That of a classifier on vectors, whose layer stands in a file of its own."""

    kind, described = "setfit", "a classifier on vectors"
    network = PooledClassifier
    endings = ("Model",)
    has_labels = True
    has_tensors = False

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> PooledClassifier:
        return PooledClassifier(body, len(tensors[CLASSES]))

    def build_described(
        self, body: Backbone, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
    ) -> PooledClassifier:
        embedder: Embedder = EmbedderHead().build_described(body, tensors, fields)
        return PooledClassifier(
            body, len(tensors[CLASSES]), embedder.pooling, normalize=embedder.normalize
        )
