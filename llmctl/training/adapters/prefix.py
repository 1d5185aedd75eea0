"""Prefix tuning: learn the keys and values of a few tokens before each text, in the self-attention
of each layer (Li and Liang 2021, arXiv:2101.00190). The network stays as it is.

P-tuning v2 (Liu et al. 2021, arXiv:2110.07602) is the same without the network that the paper
trains the prefix through, for understanding as for writing: ``--method ptuning``.

    prefix = start + W₂ tanh(W₁ E),   E: P × D;   W₂ zero at the start

``start`` is what the frozen network itself has of some words (§4.3 and §7.5 of the paper found that
best), so that training starts from the model reading these. In an encoder–decoder the prefix stands
before the target, as in PEFT.

P virtual tokens, D width, L layers, K key/value heads, H head width, E inner width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.config import Config
from llmctl.formats.base import Pretrained
from llmctl.formats.peft.virtual import PROMPT_EMBEDDINGS
from llmctl.formats.peft.writing import Learned
from llmctl.models.layers.virtual_tokens import VirtualShape, VirtualTokens, recorded
from llmctl.training.adapters.base import freeze_all_but
from llmctl.training.adapters.prompt import VirtualTokensMethod, start_ids, virtual_of


class PrefixConfig(Config):
    """The prefix."""

    tokens: int = Field(20, ge=1)
    """Virtual tokens before each text."""
    words: str = ""
    """Words as which they start, over and over or cut to as many tokens. Empty: tokens of the
    vocabulary, drawn by the seed."""
    projection: int = Field(0, ge=0)
    """With the method prefix: width of the network that the prefix is trained through, and which
    isn't kept. 0: the model's."""


class ProjectedPrefix(VirtualTokens):
    """A prefix that a small network makes of embeddings while it is trained."""

    start: Tensor

    def __init__(self, shape: VirtualShape, start_L2KPH: Tensor, width: int, inner: int) -> None:
        super().__init__(shape)
        self.keys_values = None
        self.register_buffer("start", start_L2KPH)
        self.source = nn.Parameter(torch.empty(shape.count, width))
        self.hidden = nn.Linear(width, inner)
        self.output = nn.Linear(inner, start_L2KPH.numel() // shape.count)
        with torch.no_grad():
            self.source.normal_()
            self.hidden.weight.normal_(0.0, width**-0.5)
            for zero in (self.hidden.bias, self.output.weight, self.output.bias):
                zero.zero_()

    @torch.no_grad()
    def folded(self) -> VirtualTokens:
        plain = VirtualTokens(self.shape).to(self.start.device)
        assert plain.keys_values is not None
        plain.keys_values.copy_(self.learned())
        return plain

    def learned(self) -> Tensor:
        # What counts operations takes no parameter for a module's input.
        inner_PE = F.linear(self.source, self.hidden.weight, self.hidden.bias)
        rows_PE = self.output(torch.tanh(inner_PE))
        L, _, K, P, H = self.start.shape
        return self.start + rows_PE.view(P, L, 2, K, H).permute(1, 2, 3, 0, 4)


class PTuning(VirtualTokensMethod):
    """Keys and values of virtual tokens before each text train."""

    name, table, rate = "ptuning", "prefix", 30.0
    new_rate = 0.1

    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        freeze_all_but(model, new)
        body: Any = model.body
        options = config.prefix
        ids_P = start_ids("", options.words, options.tokens, base.tokenizer, config.seed)
        start_L2KPH = recorded(body, torch.tensor([ids_P], device=body.embedding().weight.device))
        L, _, K, P, H = start_L2KPH.shape
        shape = VirtualShape(P, layers=L, heads=K, head_size=H)
        width = body.config.hidden_size
        body.put_before_texts(self._virtual(shape, start_L2KPH, config, width))

    def _virtual(
        self, shape: VirtualShape, start_L2KPH: Tensor, config: Any, width: int
    ) -> VirtualTokens:
        virtual = VirtualTokens(shape).to(start_L2KPH.device)
        assert virtual.keys_values is not None
        with torch.no_grad():
            virtual.keys_values.copy_(start_L2KPH)
        return virtual

    def learned(self, model: nn.Module, config: Any, base: Pretrained) -> Learned:
        keys_values_L2KPH = virtual_of(model).learned().detach()
        L, _, K, P, H = keys_values_L2KPH.shape
        submodules = 1
        if base.spec.kind == "encoder-decoder":
            # PEFT gives layer i the keys and values of number 2i, and others to cross-attention,
            # which then makes its own.
            apart = keys_values_L2KPH.new_zeros(L, 2, *keys_values_L2KPH.shape[1:])
            apart[:, 0] = keys_values_L2KPH
            keys_values_L2KPH, L, submodules = apart.flatten(0, 1), 2 * L, 2
        return Learned(
            {
                "peft_type": "PREFIX_TUNING",
                "num_virtual_tokens": P,
                "token_dim": K * H,
                "num_transformer_submodules": submodules,
                "num_attention_heads": K,
                "num_layers": L,
                "encoder_hidden_size": K * H,
                "prefix_projection": False,
            },
            {PROMPT_EMBEDDINGS: keys_values_L2KPH.permute(3, 0, 1, 2, 4).reshape(P, -1)},
            is_prompt=True,
        )


class Prefix(PTuning):
    """Keys and values of virtual tokens train, through a network that makes them."""

    name, rate = "prefix", 10.0
    new_rate = 0.3

    def _virtual(
        self, shape: VirtualShape, start_L2KPH: Tensor, config: Any, width: int
    ) -> VirtualTokens:
        inner = config.prefix.projection or width
        return ProjectedPrefix(shape, start_L2KPH, width, inner).to(start_L2KPH.device)
