"""The output layer on a decoder: logits of the next token (Radford et al. 2018, eq. 2).

D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.errors import InputError
from llmctl.models.heads.base import Head
from llmctl.models.layers.initialisation import initialise
from llmctl.models.spec import Backbone, ModelSpec


class CausalLM(nn.Module):
    """A decoder's body with its output layer: the token embedding, or one of its own."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body
        config = self.body.config
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            initialise(self.output, config.output_std())

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits."""
        return (self.output or self.body.embedding()).weight

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Logits (…, V) of the next token, in fp32."""
        return self.capped(F.linear(hidden_MD, self.output_weight))

    def capped(self, product_MV: Tensor) -> Tensor:
        """Logits from the output layer's product."""
        logits_MV = product_MV.float()
        cap = self.body.config.output_cap()
        return logits_MV if cap is None else cap * torch.tanh(logits_MV / cap)


class CausalLMHead(Head):
    """A language model's."""

    kind, described = "causal_lm", "a language model"
    network: ClassVar[type[CausalLM]] = CausalLM
    endings: ClassVar[tuple[str, ...]] = ("ForCausalLM",)

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> CausalLM:
        model = self.network(body)
        if model.output is not None and "output.weight" not in tensors:
            raise InputError(
                "the model has no output layer for the next token; give --from a pretrained run"
            )
        return model

    def ending(self, model: Any, spec: ModelSpec) -> str:
        return spec.lm_class
