"""What the decoders share: the shape's common fields and fresh weights."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.models.layers.cache import KeyValueCache
from llmctl.models.layers.cross_attention import Source
from llmctl.models.layers.initialisation import initialise
from llmctl.models.layers.packing import Texts
from llmctl.models.spec import Backbone, ModelConfig
from llmctl.models.weight_map import Rename


class DecoderConfig(ModelConfig):
    """The shape that every decoder has."""

    initializer_range: float = Field(0.02, gt=0.0)
    """Standard deviation of fresh weights."""
    tie_embeddings: bool = False
    """Whether the output layer is the token embedding."""

    def kv_shape(self) -> tuple[int, int]:
        """Heads of keys and values, and the width of each."""
        return self.num_heads, self.hidden_size // self.num_heads

    def output_cap(self) -> float | None:
        """Logits z become cap · tanh(z / cap); None: they stay."""
        return None

    def window(self) -> int:
        """Tokens that a token attends to, itself the last of them; 0: all before it."""
        return 0

    def output_std(self) -> float:
        """Standard deviation of a fresh output layer of its own."""
        return self.initializer_range

    def new_cache(
        self, rows: int, capacity: int, like: Tensor, starts_B: Tensor | None = None
    ) -> KeyValueCache:
        """An empty cache for ``rows`` texts of up to ``capacity`` tokens."""
        num_heads, head_size = self.kv_shape()
        return KeyValueCache.allocate(
            num_layers=self.num_layers,
            rows=rows,
            num_heads=num_heads,
            capacity=capacity,
            head_size=head_size,
            like=like,
            starts_B=starts_B,
        )


HEADS = {
    "causal_lm": (Rename("output", "lm_head", where="not tie_embeddings"),),
    "classify": (Rename("output", "score"),),
}
"""Hugging Face's names of what stands on every decoder."""


class Decoder(Backbone):
    """A network in which a token sees those before it."""

    kind = "decoder"
    config: DecoderConfig

    @abstractmethod
    def forward(
        self,
        input_ids_BT: Tensor,
        mask: Tensor | Texts | None = None,
        position_ids_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        source: Source | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the last layer, normalised.

        input_ids_BT: int64. mask: where attention is narrower than causal, the texts of packed
        rows, or bool, (B, T, T) True where token i may attend to token j. position_ids_BT: default
        0 … T-1, or behind the cache's. cache: of the tokens before, which these are added to.
        source: what is written from.
        """


@torch.no_grad()
def start_decoder(body: nn.Module, config: DecoderConfig) -> None:
    """Fresh weights as GPT-2's: normal, and smaller by √(2 · layers) where a block's result is
    added to its input, so that the sum does not grow with the depth (Radford et al. 2019, §2.3)."""
    body.apply(lambda module: initialise(module, config.initializer_range))
    for name, module in body.named_modules():
        if name.endswith(("attention.output", "feed_forward.contract")):
            assert isinstance(module, nn.Linear)
            module.weight.div_(math.sqrt(2 * config.num_layers))
