"""Tensors of a folder into a network's, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def fill(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network's, one after another: beside the network there is one at a time.

    Raises ValueError for one that is missing or has another shape.
    """
    into = getattr(tensors, "into", None)
    for name, own in state.items():
        if name not in tensors:
            raise ValueError(f"there is no tensor {name}")
        if into is not None and into(name, own):
            continue
        tensor = tensors[name]
        if tensor.shape != own.shape:
            raise ValueError(f"{name} is {sides(tensor.shape)}, not {sides(own.shape)}")
        own.copy_(tensor)


def sides(shape: Sequence[int]) -> str:
    """A shape in words."""
    return " × ".join(map(str, shape)) or "a number"
