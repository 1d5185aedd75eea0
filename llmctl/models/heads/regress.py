"""Regression: a classifier's network with one output, which is the number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from llmctl.models.heads.base import Head
from llmctl.models.heads.classify import Classifier
from llmctl.models.spec import Backbone


class Regressor(Classifier):
    """A body with a linear layer to one number, and between them what a classifier has."""

    def __init__(self, body: Backbone, *, dropout: float = 0.1) -> None:
        super().__init__(body, 1, dropout=dropout)


class RegressorHead(Head):
    """That of a regression."""

    kind, described = "regress", "a model that gives a number"
    network = Regressor
    endings = ("ForSequenceClassification",)

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> Regressor:
        return Regressor(body)
