"""A text as one vector: what a body says of its tokens, pooled (Reimers and Gurevych 2019, §3).

Texts lie end to end in rows, so that next to nothing is padding; attention stays inside each.

S texts, B rows, T tokens in a row, M tokens of texts, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.errors import InputError
from llmctl.models.heads.base import Head
from llmctl.models.layers.initialisation import initialise
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.spec import Backbone

Pooling = Literal["mean", "cls", "max", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POOLING, NORMALIZE = "llmctl_pooling", "llmctl_normalize"
"""Fields of a description: how a text's vector is made, and whether it has length 1."""


class Embedder(nn.Module):
    """A body with what makes a text's vector of its hidden states."""

    def __init__(
        self,
        body: Backbone,
        pooling: Pooling = "mean",
        *,
        normalize: bool = True,
        projection: bool = False,
    ) -> None:
        """pooling: the mean or the largest of each coordinate over a text's tokens, special ones
        included, or the hidden state of its first (``cls``) or its last. normalize: vectors have
        length 1. projection: in training alone a tanh layer follows the pooling, which makes a
        contrastive loss leave more in what is before it (Gao et al. 2021, §3)."""
        super().__init__()
        self.body, self.pooling, self.normalize = body, pooling, normalize
        self.projection: nn.Linear | None = None
        if projection:
            width = body.config.hidden_size
            self.projection = nn.Linear(width, width)
            initialise(self.projection, body.config.initializer_range)

    def forward(
        self,
        input_ids_BT: Tensor,
        position_ids_BT: Tensor,
        packed: PackedSequences | None,
        lengths_S: Tensor,
    ) -> Tensor:
        """Vectors (S, D) of the texts, row by row, in fp32.

        position_ids_BT: start anew at each text. packed: the texts numbered from 1 in each row,
        padding 0; None where each row is one text without padding. lengths_S: tokens of each.
        """
        if self.body.kind == "decoder":
            hidden_BTD = self.body(input_ids_BT, packed, position_ids_BT)
        else:
            hidden_BTD = self.body(input_ids_BT, None, packed, position_ids_BT)
        hidden_MD = hidden_BTD.flatten(0, 1).float()
        if packed is not None:
            hidden_MD = hidden_MD[packed.sequence_ids_BT.flatten() > 0]
        with torch.autocast(hidden_MD.device.type, enabled=False):
            vectors_SD = pooled(hidden_MD, lengths_S, self.pooling)
            if self.projection is not None and self.training:
                vectors_SD = torch.tanh(self.projection(vectors_SD))
            return F.normalize(vectors_SD, dim=-1) if self.normalize else vectors_SD


def pooled(hidden_MD: Tensor, lengths_S: Tensor, pooling: Pooling) -> Tensor:
    """One vector (S, D) for each of the texts that lie end to end in ``hidden_MD``."""
    if pooling in ("mean", "max"):
        return torch.segment_reduce(hidden_MD, pooling, lengths=lengths_S)
    ends_S = lengths_S.cumsum(0)
    return hidden_MD[ends_S - (lengths_S if pooling == "cls" else 1)]


class EmbedderHead(Head):
    """That of an embedder, which has no weights."""

    kind, described = "embed", "an embedder"
    network = Embedder
    endings = ("Model",)
    has_tensors = False

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> Embedder:
        return Embedder(body)

    def build_described(
        self, body: Backbone, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
    ) -> Embedder:
        pooling, normalize = fields.get(POOLING, "mean"), fields.get(NORMALIZE, True)
        if pooling not in list(POOLINGS) or not isinstance(normalize, bool):
            raise InputError(
                f"config.json: {POOLING} is one of {', '.join(POOLINGS)}, {NORMALIZE} true or "
                f"false, and they are {pooling!r} and {normalize!r}; copy it again from where the "
                "model was made"
            )
        return Embedder(body, pooling, normalize=normalize)
