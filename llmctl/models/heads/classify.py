"""Classification: dropout and a linear layer with softmax on what a body says of a text.

A BERT says it at [CLS], whose hidden state goes through the pooler first (a tanh layer, pretrained
by next-sentence prediction; Devlin et al. 2018, §4.1); a ModernBERT there or at all tokens, whose
mean goes through the transform of masked language modelling (Warner et al. 2024); a causal body at
the last token, the only one that has seen all of them (Radford et al. 2018, §3.2).

B examples, T tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.models.heads.base import Head
from llmctl.models.heads.padding import read_padded, rounded_up
from llmctl.models.layers.feed_forward import ACTIVATIONS
from llmctl.models.layers.initialisation import initialise
from llmctl.models.spec import Backbone, ModelConfig

CLASSES = "output.weight"
"""The matrix of the last layer, a row for each class."""
POOLER_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "relu": F.relu,
}
EXAMPLE_LENGTH_STEP = 8
"""The longest example of a batch is padded too, to a multiple of this: see ``rounded_up``."""


class Classifier(nn.Module):
    """A body with a linear layer to the classes, and between them an encoder's pooler or
    transform."""

    def __init__(
        self,
        body: Backbone,
        num_classes: int,
        *,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.body = body
        config: Any = body.config
        width = config.hidden_size
        self.causal = self.body.kind == "decoder"
        self.pooler: nn.Linear | None = None
        self.transform: nn.Linear | None = None
        self.transform_norm: nn.LayerNorm | None = None
        if not self.causal and config.pooled_by == "pooler":
            self.pooler = nn.Linear(width, width)
        elif not self.causal:
            self.transform = nn.Linear(width, width, bias=config.biases)
            self.transform_norm = nn.LayerNorm(width, eps=config.norm_epsilon, bias=config.biases)
        self.dropout = nn.Dropout(dropout)
        # Without a bias: so Hugging Face has it for every decoder.
        self.output = nn.Linear(width, num_classes, bias=not self.causal)
        for head in (self.pooler, self.transform, self.output):
            if head is not None:
                initialise(head, config.initializer_range)

    def forward(self, input_ids_BT: Tensor, segment_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits (B, C). mask_BT: true where a token is no padding, which is on the right."""
        T = input_ids_BT.shape[1]
        length = min(rounded_up(T, EXAMPLE_LENGTH_STEP), self.body.longest_text)
        ids_BT, segments_BT, mask_BT = (
            F.pad(part, (0, length - T)) for part in (input_ids_BT, segment_ids_BT, mask_BT)
        )
        if self.causal:
            hidden_BTD = read_padded(self.body, ids_BT, mask_BT)
            last_B = mask_BT.sum(1) - 1
            summary_BD = hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        else:
            whole = bool(mask_BT.all())
            # What a soft prompt's tokens say counts as what a text's do, as in PEFT.
            hidden_BTD = self.body(
                ids_BT, segments_BT, None if whole else mask_BT, with_prompt=True
            )
            prompt = hidden_BTD.shape[1] - length
            summary_BD = self.pooled(hidden_BTD, F.pad(mask_BT, (prompt, 0), value=True))
        return self.output(self.dropout(summary_BD))

    def pooled(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """What an encoder says of each text, (B, D)."""
        if self.pooler is not None:
            activation = POOLER_ACTIVATIONS[self.body.config.pooler_activation]
            return activation(self.pooler(hidden_BTD[:, 0]))
        assert self.transform is not None
        assert self.transform_norm is not None
        config: Any = self.body.config
        summary_BD = hidden_BTD[:, 0]
        if config.classifier_pooling == "mean":
            share_BT = mask_BT / mask_BT.sum(1, keepdim=True)
            summary_BD = torch.einsum("bt,btd->bd", share_BT.to(hidden_BTD.dtype), hidden_BTD)
        activation = ACTIVATIONS[config.head_activation]
        return self.transform_norm(activation(self.transform(summary_BD)))


class ClassifierHead(Head):
    """A classifier's."""

    kind, described = "classify", "a classifier"
    network = Classifier
    has_labels = True
    endings = ("ForSequenceClassification",)

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> Classifier:
        return Classifier(body, len(tensors[CLASSES]))


def parts_on(body: Backbone | type[Backbone], config: ModelConfig) -> tuple[str, ...]:
    """The names of a classifier's parts that stand on a body of a configuration."""
    if body.kind == "decoder":
        return ("output",)
    between = {"pooler": ("pooler",), "transform": ("transform", "transform_norm")}
    return (*between[config.pooled_by], "output")
