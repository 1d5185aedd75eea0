"""A GPT that reads a source, and a Transformer decoder attached to it that writes the target.

    P(y | x) = Πₜ P(yₜ | y₁ … yₜ₋₁, H),   H = GPT(x)              (Vaswani et al. 2017, §3.1)

The decoder's initial state is the GPT's hidden state at the last token of the source, projected and
added to the embedding of the target's start; its blocks attend to H, all states of the source
(``cross_attention``), or know the initial state alone. Its blocks may start as the GPT's (Rothe et
al. 2020), with fresh attention to the source; embeddings are the GPT's own.

As the GPT is causal, padding behind a source changes nothing before it.

B rows, S tokens of a source, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.config import Config
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.layers.cross_attention import EncoderOutput, source_mask
from llmctl.models.layers.initialisation import initialise
from llmctl.models.spec import Backbone, ModelSpec


class Seq2SeqShape(Config):
    """The decoder that is attached."""

    decoder_layers: int = Field(0, ge=0)
    """Blocks of the decoder. 0: as many as the GPT has."""
    cross_attention: bool = True
    """Whether the decoder attends to all states of the source, or knows the last one alone."""
    decoder_start: Literal["gpt", "fresh"] = "gpt"
    """Where the decoder's blocks start: gpt, as copies of the GPT's, evenly chosen; fresh, with
    random weights."""


class Seq2Seq(nn.Module):
    """The GPT, and the decoder with its output layer."""

    def __init__(self, body: Backbone, decoder: CausalLM) -> None:
        """body: the GPT."""
        super().__init__()
        self.body = body
        self.decoder = decoder
        self.decoder.body.token_embedding = self.body.token_embedding
        # A checkpoint has the shared embedding once.
        self.register_state_dict_post_hook(_without_shared)
        self.register_load_state_dict_pre_hook(_with_shared)
        width = self.body.config.hidden_size
        self.start = nn.Linear(width, width, bias=False)
        initialise(self.start, self.body.config.initializer_range)

    @property
    def reader(self) -> nn.Module:
        """The GPT, which reads the source."""
        assert isinstance(self.body, nn.Module)
        return self.body

    @property
    def writer(self) -> CausalLM:
        """What writes a target."""
        return self.decoder

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits."""
        return self.decoder.output_weight

    @property
    def output_bias(self) -> None:
        """A bias of the logits: there is none."""
        return None

    @property
    def output_cap(self) -> float | None:
        """Logits z become cap · tanh(z / cap); None: they stay."""
        cap: float | None = self.decoder.body.config.output_cap()
        return cap

    @property
    def attends(self) -> bool:
        """Whether the decoder attends to the source."""
        return any(block.cross_attention is not None for block in self.decoder.body.layers())

    def read(self, source_ids_BS: Tensor, lengths_B: Tensor) -> EncoderOutput:
        """What the decoder writes from; sources are padded behind their ``lengths_B``."""
        states_BSD = self.body(source_ids_BS)
        rows_B = torch.arange(len(states_BSD), device=states_BSD.device)
        last_BD = states_BSD[rows_B, lengths_B - 1]
        mask = source_mask(lengths_B, source_ids_BS.shape[1]) if self.attends else None
        return EncoderOutput(states_BSD, mask, self.start(last_BD))

    def write(self, input_ids_BT: Tensor, source: EncoderOutput) -> Tensor:
        """Hidden states (B, T, D) of the targets' tokens."""
        hidden_BTD: Tensor = self.decoder.body(input_ids_BT, source=source)
        return hidden_BTD


_EMBEDDING = "token_embedding.weight"


def _without_shared(
    module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object
) -> None:
    del state[f"{prefix}decoder.body.{_EMBEDDING}"]


def _with_shared(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    if f"{prefix}body.{_EMBEDDING}" in state:
        state[f"{prefix}decoder.body.{_EMBEDDING}"] = state[f"{prefix}body.{_EMBEDDING}"]


def attach(gpt: CausalLM, shape: Seq2SeqShape, architecture: ModelSpec) -> Seq2Seq:
    """A GPT with a new decoder of its own architecture, width and output layer behind it."""
    model = build(gpt.body.config, shape, architecture)
    model.body.load_state_dict(gpt.body.state_dict())
    if model.decoder.output is not None:
        model.decoder.output.load_state_dict(gpt.output.state_dict())  # type: ignore[union-attr]
    if shape.decoder_start == "gpt":
        model.decoder.body.start_as(gpt.body)
    return model


def build(config: Any, shape: Seq2SeqShape, architecture: ModelSpec) -> Seq2Seq:
    """The network with fresh weights."""
    layers = shape.decoder_layers or config.num_layers
    body = architecture.build(config)
    decoder = architecture.build(
        config.replace(num_layers=layers), cross_attention=shape.cross_attention
    )
    return Seq2Seq(body, CausalLM(decoder))
