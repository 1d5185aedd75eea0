"""The output layer on an encoder–decoder: logits of a target's next token, given its source.

    P(y | x) = Πₜ softmax(W hₜ + b)[yₜ],   h = decoder(y₁ … yₜ₋₁, encoder(x))

B rows, S tokens of a source, T of a target, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.errors import InputError
from llmctl.models.encoder_decoder import EncoderDecoder
from llmctl.models.heads.base import Head
from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.cross_attention import EncoderOutput
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.spec import Backbone


class EncoderDecoderLM(nn.Module):
    """An encoder–decoder with its output layer: the token embedding, or one of its own."""

    output_bias: Tensor | None

    def __init__(self, body: EncoderDecoder) -> None:
        super().__init__()
        self.body = body
        config: Any = body.config
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            with torch.no_grad():
                self.output.weight.normal_(0.0, config.output_std())
        # Kept with the model where the architecture has it, and never trained.
        bias_V = torch.zeros(config.vocab_size) if config.biased_logits else None
        self.register_buffer("output_bias", bias_V)

    @property
    def writer(self) -> EncoderDecoderLM:
        """What writes a target: the model itself."""
        return self

    @property
    def output_cap(self) -> None:
        """A cap of the logits: there is none."""
        return None

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits."""
        return (self.output or self.body.embedding()).weight

    def forward(
        self,
        source_ids_BS: Tensor,
        lengths: Tensor | PackedSequences | None,
        input_ids_BT: Tensor,
        targets: PackedSequences | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the targets' tokens, for ``output_weight`` and
        ``output_bias``.

        lengths: of sources that are padded behind, (B,), or the texts of packed rows; None: all are
        as long. targets: the texts of packed targets.
        """
        return self.write(input_ids_BT, self.read(source_ids_BS, lengths), targets)

    def read(
        self, source_ids_BS: Tensor, lengths: Tensor | PackedSequences | None = None
    ) -> EncoderOutput:
        """What the decoder writes from."""
        return self.body.read(source_ids_BS, lengths)

    def write(
        self,
        input_ids_BT: Tensor,
        source: EncoderOutput,
        targets: PackedSequences | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the targets' tokens."""
        return self.body(input_ids_BT, source, targets, cache=cache)

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Logits (…, V) of the next token, in fp32."""
        return self.capped(F.linear(hidden_MD, self.output_weight))

    def capped(self, product_MV: Tensor) -> Tensor:
        """Logits from the output layer's product."""
        logits_MV = product_MV.float()
        return logits_MV if self.output_bias is None else logits_MV + self.output_bias


class EncoderDecoderHead(Head):
    """An encoder–decoder's output layer."""

    kind, described = "seq2seq", "a model that writes from a source"
    network = EncoderDecoderLM
    optional = ("output_bias",)
    endings = ("ForConditionalGeneration", "WithLMHeadModel")

    def build(self, body: Backbone, tensors: Mapping[str, Tensor]) -> EncoderDecoderLM:
        assert isinstance(body, EncoderDecoder)
        model = EncoderDecoderLM(body)
        if model.output is not None and "output.weight" not in tensors:
            raise InputError(
                "the model has no output layer for the next token; give --from a pretrained run"
            )
        return model
