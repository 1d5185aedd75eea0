"""What the decoders share: the shape's common fields, fresh weights, reading others' names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmctl.config import Config
from llmctl.errors import InputError
from llmctl.models.layers.attention import MOST_LAYERS, initialise
from llmctl.models.layers.cache import KeyValueCache

HEAD_SIZE = 64
"""Width of a head where the number of heads isn't given: GPT-2's and Llama's smaller sizes'."""


class DecoderConfig(Config):
    """The shape that every decoder has."""

    vocab_size: int = Field(0, ge=0)
    """Pieces of the vocabulary; filled in from the tokenizer."""
    num_layers: int = Field(6, ge=1, le=MOST_LAYERS, strict=True)
    """Blocks."""
    hidden_size: int = Field(192, ge=1, strict=True)
    """Width of the hidden states; a multiple of the heads."""
    num_heads: int = Field(0, ge=0, strict=True)
    """Attention heads. 0: one for each 64 of the width."""
    intermediate_size: int = Field(0, ge=0, strict=True)
    """Width inside the feed-forward network. 0: four times the hidden states'."""
    max_positions: int = Field(1024, ge=8)
    """Tokens that a text may have: the longest context."""
    initializer_range: float = Field(0.02, gt=0.0)
    """Standard deviation of fresh weights."""
    tie_embeddings: bool = False
    """Whether the output layer is the token embedding."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        width = values.get("hidden_size", cls.model_fields["hidden_size"].default)
        if isinstance(width, int) and width > 0:
            values = dict(values)
            values["num_heads"] = values.get("num_heads") or max(1, width // HEAD_SIZE)
            values["intermediate_size"] = values.get("intermediate_size") or cls.inner_width(width)
        return values

    @classmethod
    def inner_width(cls, width: int) -> int:
        """The feed-forward network's width where none is given."""
        return 4 * width

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            below = self.hidden_size - self.hidden_size % self.num_heads
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_heads "
                f"{self.num_heads}; try {below or self.num_heads}"
            )
        return self

    def kv_shape(self) -> tuple[int, int]:
        """Heads of keys and values, and the width of each."""
        return self.num_heads, self.hidden_size // self.num_heads

    def output_cap(self) -> float | None:
        """Logits z become cap · tanh(z / cap); None: they stay."""
        return None

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


@torch.no_grad()
def start_decoder(body: nn.Module, config: DecoderConfig) -> None:
    """Fresh weights as GPT-2's: normal, and smaller by √(2 · layers) where a block's result is
    added to its input, so that the sum does not grow with the depth (Radford et al. 2019, §2.3)."""
    body.apply(lambda module: initialise(module, config.initializer_range))
    for name, module in body.named_modules():
        if name.endswith(("attention.output", "feed_forward.contract")):
            assert isinstance(module, nn.Linear)
            module.weight.div_(math.sqrt(2 * config.num_layers))


def take_tensor(tensors: Mapping[str, Tensor], name: str, prefix: str, what: str) -> Tensor:
    """A tensor by its name; a bare body's file has no prefix. Raises InputError without it."""
    for candidate in (name, name.removeprefix(prefix)):
        if candidate in tensors:
            return tensors[candidate]
    raise InputError(f"the model file has no tensor {name}; it is not {what} of this shape")
