"""The heads of masked pretraining on an encoder: a softmax over the vocabulary for hidden tokens,
and one on [CLS] that tells whether two sentences follow one another (Devlin et al. 2018, §3.1).

D width, M masked tokens, S texts (pairs) in the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.errors import InputError
from llmctl.models.heads.base import Head
from llmctl.models.layers.feed_forward import ACTIVATIONS
from llmctl.models.layers.initialisation import initialise
from llmctl.models.spec import Backbone, ModelSpec


class MaskedLM(nn.Module):
    """An encoder with the heads of its pretraining."""

    def __init__(self, body: Backbone, *, next_sentence: bool = True) -> None:
        super().__init__()
        self.body = body
        width, config = body.config.hidden_size, body.config
        embedded = config.embedding_width
        self.transform = nn.Linear(width, embedded, bias=config.biases)
        self.transform_norm = nn.LayerNorm(embedded, eps=config.norm_epsilon, bias=config.biases)
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(embedded, config.vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.pooler = nn.Linear(width, width) if next_sentence else None
        self.next_sentence = nn.Linear(width, 2) if next_sentence else None
        for head in (self.transform, self.output, self.pooler, self.next_sentence):
            if head is not None:
                initialise(head, config.initializer_range)

    @property
    def output_weight(self) -> Tensor:
        """The matrix from what is transformed to logits: the token embedding, or one of its own."""
        return (self.output or self.body.embedding()).weight

    def token_logits(self, hidden_MD: Tensor) -> Tensor:
        """Logits (M, V): a transform, then the output layer and a bias."""
        return F.linear(self.transformed(hidden_MD), self.output_weight, self.output_bias)

    def mask_logits(self, ids_T: Tensor, places_M: Tensor) -> Tensor:
        """Logits (M, V) at masks of a text."""
        return self.token_logits(self.body(ids_T[None])[0].index_select(0, places_M))

    def transformed(self, hidden_MD: Tensor) -> Tensor:
        """The transform between the body and the output layer, (M, width of the embeddings)."""
        activation = ACTIVATIONS[self.body.config.head_activation]
        return self.transform_norm(activation(self.transform(hidden_MD)))

    def next_logits(self, cls_SD: Tensor) -> Tensor:
        """Logits (S, 2) from the hidden states of [CLS]: is next, is random."""
        assert self.pooler is not None
        assert self.next_sentence is not None
        return self.next_sentence(torch.tanh(self.pooler(cls_SD)))


class MaskedLMHead(Head):
    """A masked language model's, with next-sentence prediction or without."""

    kind, described = "masked_lm", "a masked language model"
    network = MaskedLM
    endings = ("ForMaskedLM", "ForPreTraining")

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> MaskedLM:
        if "output_bias" not in tensors:
            raise InputError(
                "the model has no masked-language-model head; give --from a pretrained run"
            )
        return MaskedLM(body, next_sentence="next_sentence.weight" in tensors)

    def ending(self, model: Any, spec: ModelSpec) -> str:
        return self.endings[model.next_sentence is not None]
