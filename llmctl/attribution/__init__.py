"""Which words decided: how much of a model's answer each word of a text accounts for.

A method gives each word a weight; positive is for the answer, negative against it. What a weight is
worth is measured on the text itself: see ``faithfulness.py``. No method is shown without that.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmctl.attribution.explained import AttributionMethod
from llmctl.attribution.gradients import GradientTimesInput, IntegratedGradients
from llmctl.attribution.perturbation import Occlusion, ShapleySampling
from llmctl.attribution.rollout import AttentionRollout

ATTRIBUTION_METHODS: Mapping[str, type[AttributionMethod]] = {
    method.name: method
    for method in (
        IntegratedGradients, GradientTimesInput, Occlusion, ShapleySampling, AttentionRollout,
    )
}  # fmt: skip
"""By the name that ``--method`` takes."""
