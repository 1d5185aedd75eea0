"""Tensors of a folder into a network's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.workspace.tensors import MappedFiles

THREADED_BYTES = 1 << 24
"""Fewer are read before threads have begun."""
MOST_READERS = 4
"""Threads at most: as many read as fast as memory takes it, and each may hold a tensor."""


def fill(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Read tensors into a network's, by a few threads one after another each: beside the network
    there is what these make of one.

    Raises ValueError for one that is missing or has another shape.
    """
    threads = min(torch.get_num_threads(), MOST_READERS)
    size = sum(own.nbytes for own in state.values())
    if size < THREADED_BYTES or not getattr(tensors, "by_threads", False):
        threads = 1
    if threads == 1:
        _fill(state, tensors)
        return
    names = list(state)
    parts = [{name: state[name] for name in names[start::threads]} for start in range(threads)]
    inference = torch.is_inference_mode_enabled()  # a matter of each thread
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_fill_in_mode, repeat(inference), parts, repeat(tensors)))


def _fill_in_mode(
    inference: bool, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    with torch.inference_mode(inference):
        _fill(state, tensors)


@torch.no_grad()
def _fill(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    into = getattr(tensors, "into", None)
    files: dict[Path, Any] = {}
    try:
        for name, own in state.items():
            if name not in tensors:
                raise ValueError(f"there is no tensor {name}")
            if into is not None and into(name, own, files):
                continue
            tensor = tensors[name]
            if tensor.shape != own.shape:
                raise ValueError(f"{name} is {sides(tensor.shape)}, not {sides(own.shape)}")
            own.copy_(tensor)
    finally:
        for file in files.values():
            file.close()


class Placement(Enum):
    """Where a network's weights lie."""

    OWN = auto()
    """In memory of their own, whatever becomes of their file."""
    ALIGNED = auto()
    """In the pages of their file, where they take no time and no memory, if they begin there as
    PyTorch would have put them; else in memory of their own."""
    ANYWHERE = auto()
    """In the pages of their file, wherever they begin. Products of them may differ in their last
    bits: see ``TENSOR_ALIGNMENT``."""


@torch.no_grad()
def fill_network(
    model: nn.Module, tensors: Mapping[str, Tensor], without: Collection[str], lie: Placement
) -> None:
    """Give a network its tensors, but those that are left out, where they are to lie.

    What can't lie in a file is copied, as ``fill`` does. Raises ValueError for one that is missing
    or has another shape.
    """
    mapped_for = None if lie is Placement.OWN else getattr(tensors, "mapped_for", None)
    files = MappedFiles(anywhere=lie is Placement.ANYWHERE)
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
