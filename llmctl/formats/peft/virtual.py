"""Virtual tokens as PEFT keeps them: one matrix with a row for each, ``prompt_embeddings``.

P virtual tokens, D width, L layers, K key/value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.filling import sides
from llmctl.models.layers.virtual_tokens import VirtualShape

PREFIX = "PREFIX_TUNING"
PROMPTS = ("PROMPT_TUNING", "P_TUNING")
"""What they are as embeddings; P-tuning's are those that its network made."""
OURS = "body.virtual_tokens."
PROMPT_EMBEDDINGS = "prompt_embeddings"
"""The names of the tensor here and there."""


class Source(Protocol):
    """What an adapter's tensors are read from."""

    @property
    def where(self) -> str:
        """The file, for messages."""
        ...

    def prompt(self) -> Tensor:
        """``prompt_embeddings``."""
        ...


def virtual_in(
    model: Pretrained, fields: Mapping[str, Any], source: Source
) -> tuple[VirtualShape, str, Callable[[], Tensor]]:
    """The virtual tokens of an adapter: their shape, our name of the tensor, and what reads it.

    Raises InputError where they aren't those of the model.
    """
    count = fields.get("num_virtual_tokens")
    if type(count) is not int or not 1 <= count < model.config.max_positions:
        raise InputError(
            f"{source.where}: num_virtual_tokens is {count!r}, and the model's context is "
            f"{model.config.max_positions} tokens"
        )
    if fields["peft_type"] in PROMPTS:
        width = int(model.config.embedding_width)
        _check(source, (count, width), at_least=True)
        return (
            VirtualShape(count, width),
            f"{OURS}embeddings",
            # For an encoder–decoder PEFT keeps as many again, which nothing reads.
            lambda: source.prompt()[:count].float(),
        )
    layers, heads, head_size = prefix_shape(model.config)
    rows = fields.get("num_layers")
    if type(rows) is not int or rows < 1:
        raise InputError(f"{source.where}: num_layers is {rows!r}, not a number of layers")
    _check(source, (count, rows * 2 * heads * head_size))
    # PEFT deals them out in fours to an encoder–decoder: its layer i has those of number 2i.
    step = 2 if model.spec.kind == "encoder-decoder" else 1
    if step == 1 and rows != layers:
        raise InputError(
            f"{source.where}: num_layers is {rows}, and the model has {layers}; it is for another"
        )
    numbers_L = torch.arange(layers) * step % rows

    def read() -> Tensor:
        kept = source.prompt().float().view(count, rows, 2, heads, head_size)
        return kept.permute(1, 2, 3, 0, 4)[numbers_L]

    shape = VirtualShape(count, layers=layers, heads=heads, head_size=head_size)
    return shape, f"{OURS}keys_values", read


def prefix_shape(config: Any) -> tuple[int, int, int]:
    """Layers of a prefix in a network of a configuration, its key/value heads and their width."""
    layers = getattr(config, "written_layers", config.num_layers)
    if hasattr(config, "kv_shape"):
        return (layers, *config.kv_shape())
    return layers, config.num_heads, config.hidden_size // config.num_heads


def _check(source: Source, shape: tuple[int, int], *, at_least: bool = False) -> None:
    found = tuple(source.prompt().shape)
    enough = at_least and found[0] >= shape[0] and found[1:] == shape[1:]
    if found != shape and not enough:
        raise InputError(
            f"{source.where}: prompt_embeddings is {sides(found)}, not {sides(shape)} as the model "
            "that the adapter is for needs; it is for another"
        )
