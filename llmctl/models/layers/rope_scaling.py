"""Rotary angles for texts longer than those of pretraining: slower turns for the slow pairs.

Each kind makes other frequencies f' of the pairs' frequencies f, with wavelengths 2π / f:

    linear   f' = f / s                                     (Chen et al. 2023, arXiv:2306.15595)
    llama3   f where the wavelength is below L / high, f / s where it is above L / low, and
             between them a mean of both by L / wavelength   (Llama 3.1, Grattafiori et al. 2024)
    yarn     f / s for the pairs that turn less than once in L tokens, f for those that turn more
             than 32 times, a ramp over the pairs between; cosines and sines times
             0.1 ln s + 1                                    (Peng et al. 2023, arXiv:2309.00071)

s the factor, L the tokens of pretraining's texts, H head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RopeType = Literal["default", "linear", "llama3", "yarn"]
FAST_TURNS, SLOW_TURNS = 32, 1
"""Turns in a text of pretraining's length between which yarn's ramp lies."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are scaled."""

    kind: RopeType
    factor: float
    low: float
    """The share of L that the longest wavelengths are told by, as 1 / low: of llama3."""
    high: float
    original: int
    """Tokens of pretraining's texts, L."""

    def frequencies(self, plain: NDArray[np.float32], theta: float) -> NDArray[np.float32]:
        """The frequencies (H / 2) in the place of the plain ones."""
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        slow = plain / np.float32(self.factor)
        if self.kind == "llama3":
            turns = self.original * plain / np.float32(2 * math.pi)  # L over the wavelength
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        else:
            kept = 1 - self._ramp(2 * len(plain), theta)
        mixed: NDArray[np.float32] = ((1 - kept) * slow + kept * plain).astype(np.float32)
        return mixed

    def _ramp(self, head_size: int, theta: float) -> NDArray[np.float64]:
        """0 for the pairs that turn fast, 1 for the slow ones, by yarn."""
        first, last = (
            head_size * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (FAST_TURNS, SLOW_TURNS)
        )
        begin, end = max(math.floor(first), 0), min(math.ceil(last), head_size - 1)
        width = (end - begin) or 0.001
        return np.clip((np.arange(head_size // 2) - begin) / width, 0, 1)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied with."""
        return 0.1 * math.log(self.factor) + 1 if self.kind == "yarn" and self.factor > 1 else 1.0
