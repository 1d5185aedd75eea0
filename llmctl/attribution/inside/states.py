"""The states of whole texts, layer by layer, many texts at a time.

Texts of one length are read together, so that no padding is needed, whatever the architecture.

B texts, L layers, T tokens, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmctl.models.layers.cross_attention import EncoderOutput
from llmctl.models.spec import Backbone

STATE_TOKENS = 2048
"""Tokens that are read together."""


def reading_layers(body: Backbone) -> Sequence[nn.Module]:
    """The layers that read a text: all, or the encoder's, which are the first."""
    layers = body.layers()
    return layers[: body.config.num_layers] if body.kind == "encoder-decoder" else layers


def read(body: Backbone, ids_BT: Tensor) -> Tensor:
    """The states (B, T, D) that a network gives of texts, an encoder–decoder those of its
    encoder."""
    if body.kind == "encoder-decoder":
        source: EncoderOutput = body.read(ids_BT)  # type: ignore[operator]
        return source.states_GSD
    found: Tensor = body(ids_BT)
    return found


@contextmanager
def recorded_reading(body: Backbone) -> Iterator[list[Tensor]]:
    """Keep the residual stream (B, T, D) of the next pass: what goes into the lowest layer, then
    what comes out of each that reads, L + 1 of them. Of a second pass nothing is kept."""
    states: list[Tensor] = []
    layers = reading_layers(body)

    def keep(state: Tensor) -> None:
        if len(states) <= len(layers):
            states.append(state.detach())

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        keep(inputs[0])

    def behind(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(output)

    handles = [layers[0].register_forward_pre_hook(before)]
    handles += [layer.register_forward_hook(behind) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def of_one_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of texts that are read together: all of one length, and not too many."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[length].append(number)
    for length, members in sorted(groups.items()):
        each = max(1, STATE_TOKENS // max(length, 1))
        for begin in range(0, len(members), each):
            yield members[begin : begin + each]


@torch.no_grad()
def states_of(
    body: Backbone,
    texts: Sequence[NDArray[np.int64]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Some of the texts, by their numbers, with the residual stream (L + 1, B, T, D) in fp32 and
    what the network gives of it (B, T, D).

    texts: ids with special tokens, none longer than the network reads.
    """
    device, done = body.embedding().weight.device, 0
    for members in of_one_length([len(text) for text in texts]):
        ids_BT = torch.from_numpy(np.stack([texts[number] for number in members])).to(device)
        with recorded_reading(body) as states:
            output_BTD = read(body, ids_BT)
        yield members, torch.stack(states).float(), output_BTD.float()
        done += len(members)
        progress(done, len(texts))
