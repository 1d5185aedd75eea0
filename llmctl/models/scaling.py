"""How good a training will be: a scaling law of weights and tokens, and what repetition is worth.

    L(N, D) = E + A / N^α + B / D^β                        (Hoffmann et al. 2022, eq. 2)

Hoffmann's constants are for models a thousand times as large, in nats of their own tokens, and far
off here (they promise 9 nats where 3.5 were measured). So the same form is fitted to trainings of
seconds to minutes (``tests/benchmarks/scaling.py``, whose table is in RESULTS.md), with two changes
that make texts comparable. The loss is counted in the text's own unit: the entropy H of its tokens
one by one, which is what a model that knows nothing but their frequencies would lose. And B grows
with the vocabulary as (V / 8000)^γ: what is seen seldom is learned late, and characters are not.

D is what the tokens are worth, not how many there are. A text read again teaches less (Muennighoff
et al. 2023, §3.1), and so do steps of more tokens than the gradient's noise asks for (Kaplan et al.
2020, eq. 5.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REPETITION_LIFE = 15.39
"""R*_D of Muennighoff et al. 2023: after so many repetitions one more is worth 1/e of new text."""

USUAL_VOCABULARY = 8000


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D). N: weights that each token is multiplied with, so that 6 N D are the operations."""

    irreducible: float
    """E: what is left of the loss with any number of weights and tokens."""
    weights_factor: float
    """A."""
    weights_exponent: float
    """The exponent α."""
    tokens_factor: float
    """B."""
    tokens_exponent: float
    """The exponent β."""
    vocabulary_exponent: float = 0.0
    """The exponent γ."""
    critical_batch: float = math.inf
    """Tokens in a step at which half of them are wasted."""

    def loss(self, weights: float, tokens: float, vocab_size: int = USUAL_VOCABULARY) -> float:
        """The loss after training ``weights`` on tokens worth ``tokens`` new ones."""
        factor = self.tokens_factor * (vocab_size / USUAL_VOCABULARY) ** self.vocabulary_exponent
        return (
            self.irreducible
            + self.weights_factor / weights**self.weights_exponent
            + factor / tokens**self.tokens_exponent
        )

    def best_weights(self, flops: float) -> float:
        """The N with the lowest loss for 6 N D operations (Hoffmann et al. 2022, eq. 4), with the
        usual vocabulary."""
        a, b = self.weights_exponent, self.tokens_exponent
        ratio = (a * self.weights_factor) / (b * self.tokens_factor)
        return ratio ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))

    def worth(self, tokens: float, unique: float, tokens_per_step: float) -> float:
        """How many new tokens, in steps as small as you like, those of a training are worth."""
        return repeated(tokens, unique) / (1 + tokens_per_step / self.critical_batch)


def repeated(tokens: float, unique: float) -> float:
    """How many new tokens are worth as much as ``tokens`` out of a text of ``unique``.

    >>> round(repeated(4.0, 1.0), 2)
    3.73
    """
    if tokens <= unique:
        return tokens
    repetitions = tokens / unique - 1
    return unique * (1 + REPETITION_LIFE * -math.expm1(-repetitions / REPETITION_LIFE))


def entropy(counts: NDArray[np.int64]) -> float:
    """The entropy of tokens one by one, in nats, from how often each comes.

    >>> round(entropy(np.array([5, 5, 0])), 4)
    0.6931
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


HOFFMANN = ScalingLaw(1.69, 406.4, 0.34, 410.7, 0.28)
"""The law of Hoffmann et al. 2022, eq. 10, for comparison."""

CAUSAL = ScalingLaw(0.2329, 6.810, 0.3109, 9.118, 0.2481, 0.1427, 6482)
"""The law of nanochat, fitted by ``tests/benchmarks/scaling.py``; other architectures' differ in
some of the constants."""
