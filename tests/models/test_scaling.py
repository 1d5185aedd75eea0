"""The scaling law against its closed form, published figures and sums by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from llmctl.models import ARCHITECTURES
from llmctl.models.scaling import HOFFMANN, ScalingLaw, entropy, repeated

LAWS = {
    "hoffmann": HOFFMANN,
    **{name: spec.scaling for name, spec in ARCHITECTURES.items() if spec.scaling},
}


def test_chinchillas_own_loss():
    """70 B weights and 1.4 T tokens: 1.69 + 0.083 + 0.163 by the published constants."""
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.936, abs=0.002)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("flops", [1e12, 1e15, 5.76e23])
def test_the_best_size_on_a_grid_is_that_of_the_closed_form(law: ScalingLaw, flops: float):
    sizes = np.geomspace(1e2, 1e13, 20_001)
    losses = [law.loss(n, flops / 6 / n) for n in sizes]
    best = float(sizes[int(np.argmin(losses))])
    assert best == pytest.approx(law.best_weights(flops), rel=0.003)


def test_a_text_read_again_is_worth_less_and_in_the_end_nothing():
    assert repeated(5e5, 1e6) == 5e5
    assert repeated(1e6, 1e6) == 1e6
    # Muennighoff et al. 2023: four passes are almost as good as new text, forty are not.
    assert 0.92 < repeated(4e6, 1e6) / 4e6 < 0.94
    assert repeated(40e6, 1e6) / 40e6 < 0.4
    assert repeated(1e12, 1e6) == pytest.approx(1e6 * (1 + 15.39))
    worth = [repeated(n * 1e5, 1e6) for n in range(1, 400)]
    assert all(a < b for a, b in itertools.pairwise(worth))


def test_at_the_critical_batch_half_of_the_tokens_are_wasted():
    law = ScalingLaw(0.1, 1.0, 0.3, 1.0, 0.3, critical_batch=4096)
    assert law.worth(1e6, 1e9, 4096) == pytest.approx(5e5)
    assert law.worth(1e6, 1e9, 1) == pytest.approx(1e6, rel=1e-3)
    assert ScalingLaw(0.1, 1.0, 0.3, 1.0, 0.3).worth(1e6, 1e9, 1 << 20) == 1e6


def test_a_large_vocabulary_takes_more_tokens():
    """With γ = β, twice the vocabulary needs twice the tokens."""
    law = ScalingLaw(0.1, 1.0, 0.3, 1.0, 0.25, vocabulary_exponent=0.25)
    assert law.loss(1e6, 2e6, 16_000) == pytest.approx(law.loss(1e6, 1e6, 8_000))
    assert law.loss(1e6, 1e6, 8_000) == law.loss(1e6, 1e6)


def test_entropy_of_tokens_one_by_one():
    assert entropy(np.array([7, 7, 7, 7])) == pytest.approx(math.log(4))
    assert entropy(np.array([9, 0, 0])) == 0.0
    assert entropy(np.array([2, 1, 1])) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
