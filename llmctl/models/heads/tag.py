"""Tagging: a linear layer with softmax on each token's hidden state (Devlin et al. 2018, §5.3).

B texts, T tokens, D width, C tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.models.heads.base import Head
from llmctl.models.heads.classify import CLASSES, EXAMPLE_LENGTH_STEP
from llmctl.models.heads.padding import read_padded, rounded_up
from llmctl.models.layers.feed_forward import ACTIVATIONS
from llmctl.models.layers.initialisation import initialise
from llmctl.models.spec import Backbone


class Tagger(nn.Module):
    """A body with a linear layer to the tags, and ModernBERT's transform between. A causal body
    sees of a text what stands before."""

    def __init__(self, body: Backbone, num_tags: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.body = body
        config: Any = body.config
        width = config.hidden_size
        self.transform: nn.Linear | None = None
        self.transform_norm: nn.LayerNorm | None = None
        if body.kind == "encoder" and config.pooled_by == "transform":
            self.transform = nn.Linear(width, width, bias=config.biases)
            self.transform_norm = nn.LayerNorm(width, eps=config.norm_epsilon, bias=config.biases)
            initialise(self.transform, config.initializer_range)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, num_tags)
        initialise(self.output, config.initializer_range)

    def forward(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits (B, T, C). mask_BT: true where a token is no padding, which is on the right."""
        T = input_ids_BT.shape[1]
        length = min(rounded_up(T, EXAMPLE_LENGTH_STEP), self.body.longest_text)
        ids_BT, mask_BT = (F.pad(part, (0, length - T)) for part in (input_ids_BT, mask_BT))
        if self.body.kind == "decoder":
            hidden_BTD = read_padded(self.body, ids_BT, mask_BT)
        else:
            hidden_BTD = self.body(ids_BT, None, None if bool(mask_BT.all()) else mask_BT)
        return self.output(self.dropout(self.transformed(hidden_BTD[:, :T])))

    def transformed(self, hidden_BTD: Tensor) -> Tensor:
        """What goes to the last layer, (B, T, D)."""
        if self.transform is None or self.transform_norm is None:
            return hidden_BTD
        activation = ACTIVATIONS[self.body.config.head_activation]
        return self.transform_norm(activation(self.transform(hidden_BTD)))


class TaggerHead(Head):
    """A tagger's."""

    kind, described = "tag", "a tagger"
    network = Tagger
    endings = ("ForTokenClassification",)
    has_labels = True

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> Tagger:
        return Tagger(body, len(tensors[CLASSES]))
