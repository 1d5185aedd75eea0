"""Models made smaller: the table of methods. It loads no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CompressionMethod:
    """A way of making a model smaller."""

    family: Literal["quantise", "mask", "cut", "student"]
    """Whether weights are kept in fewer bits, set to zero, or left out with what they stand in; or
    the smaller model is there already, as one that learned from it."""
    purpose: str
    """What it does, as a clause."""
    reads: bool = False
    """Whether it looks at how the model reads text."""
    beside: str | None = None
    """The simpler method that it stands beside in the table."""


COMPRESSION_METHODS: Mapping[str, CompressionMethod] = {
    "round": CompressionMethod("quantise", "rounds each weight to the nearest number"),
    "gptq": CompressionMethod(
        "quantise",
        "rounds column by column, and lets the columns behind make up for it (Frantar et al. 2022)",
        reads=True,
        beside="round",
    ),
    "awq": CompressionMethod(
        "quantise",
        "scales up inputs that matter before it rounds (Lin et al. 2023)",
        reads=True,
        beside="round",
    ),
    "magnitude": CompressionMethod(
        "mask", "sets the smallest weights of each output to zero", reads=False
    ),
    "wanda": CompressionMethod(
        "mask",
        "sets to zero the weights whose product with their input is least (Sun et al. 2023)",
        reads=True,
        beside="magnitude",
    ),
    "channels": CompressionMethod("cut", "leaves out channels within layers", reads=True),
    "heads": CompressionMethod("cut", "leaves out heads with their keys and values", reads=True),
    "layers": CompressionMethod("cut", "leaves out the layers that change least", reads=True),
    "distil": CompressionMethod("student", "takes a student that learned from it"),
}
"""By the name that ``--method`` takes."""
