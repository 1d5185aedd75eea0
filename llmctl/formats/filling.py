"""Tensors of a folder into a network's, one after another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


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


@torch.no_grad()
def fill_network(
    model: nn.Module, tensors: Mapping[str, Tensor], without: Collection[str], *, mapped: bool
) -> None:
    """Give a network its tensors, but those that are left out.

    mapped: whether they stay in the pages of their file where they can lie there, so that they take
    no time and no memory; the others are copied, as ``fill`` does. Raises ValueError for one that
    is missing or has another shape.
    """
    mapped_for = getattr(tensors, "mapped_for", None) if mapped else None
    files: dict[Path, Any] = {}
    copied = {}
    for name, own in model.state_dict(keep_vars=True).items():
        if name in without:
            continue
        there = None if mapped_for is None else mapped_for(name, own, files)
        if there is None:
            copied[name] = own
        else:
            own.data = there
    fill(copied, tensors)


def sides(shape: Sequence[int]) -> str:
    """A shape in words."""
    return " × ".join(map(str, shape)) or "a number"
