"""Weights from gradients with respect to the token embeddings.

R rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmctl.attribution.explained import TOKENS_AT_ONCE, AttributionMethod, ExplainedText, Floats
from llmctl.reporting.explanation import MISSED_SHARE

FEWEST_PATH_STEPS, MOST_PATH_STEPS = 32, 512


@contextmanager
def embedded_as(embedding: nn.Module, x_RTD: Tensor, calls: int = 1) -> Iterator[None]:
    """Let the next calls of an embedding give these vectors for their first T tokens."""
    pending = [x_RTD] * calls

    def replaced(module: nn.Module, inputs: Any, output_RTD: Tensor) -> Tensor | None:
        if not pending:
            return None
        given_RTD = pending.pop()
        return torch.cat([given_RTD, output_RTD[:, given_RTD.shape[1] :]], dim=1)

    handle = embedding.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def gradients(text: ExplainedText, x_RTD: Tensor) -> Tensor:
    """The gradient (R, T, D) of each row's score with respect to its vectors."""
    x_RTD = x_RTD.detach().requires_grad_(True)
    with torch.enable_grad(), embedded_as(text.embedding, x_RTD, text.passes):
        scores_R = text.score(text.ids_T.expand(len(x_RTD), -1))
        (gradient_RTD,) = torch.autograd.grad(scores_R.sum(), x_RTD)
    return gradient_RTD


@torch.no_grad()
def _vectors(text: ExplainedText, kept: bool) -> Tensor:
    """The embeddings (T, D) of the text, or of the text without its words."""
    ids_1T = text.rows(np.full((1, len(text.words)), kept))
    vectors: Tensor = text.embedding(ids_1T)[0]
    return vectors


class GradientTimesInput(AttributionMethod):
    """The gradient's product with what it is a gradient of: Shrikumar et al. 2016."""

    name = "gradient-input"
    described = "gradient × input (Shrikumar et al. 2016)"

    def weights(self, text: ExplainedText) -> Floats:
        """∇F(x) · x, summed over a word's tokens."""
        x_1TD = _vectors(text, kept=True)[None]
        return text.of_words((gradients(text, x_1TD) * x_1TD)[0].sum(-1))


class IntegratedGradients(AttributionMethod):
    """Gradients along the way from a text without its words to the text (Sundararajan et al. 2017,
    eq. 1):

        w = (x − x₀) ∫₀¹ ∇F(x₀ + α (x − x₀)) dα

    by Gauss and Legendre's rule. The weights sum up to F(x) − F(x₀); steps are doubled until they
    do within 1 %.
    """

    name = "integrated-gradients"
    described = "integrated gradients (Sundararajan et al. 2017)"

    def __init__(self) -> None:
        self.missed, self.steps = 0.0, 0

    def weights(self, text: ExplainedText) -> Floats:
        """The integral, summed over a word's tokens."""
        x_TD, base_TD = _vectors(text, kept=True), _vectors(text, kept=False)
        base, full = text.scores(np.array([[False], [True]]).repeat(len(text.words), axis=1))
        whole = full - base
        self.steps = FEWEST_PATH_STEPS
        while True:
            total_TD = self._integral(text, x_TD, base_TD)
            found = text.of_words((total_TD * (x_TD - base_TD)).sum(-1))
            self.missed = abs(float(found.sum() - whole)) / max(abs(float(whole)), 1e-6)
            if self.missed <= MISSED_SHARE or self.steps >= MOST_PATH_STEPS:
                return found
            self.steps *= 2

    def _integral(self, text: ExplainedText, x_TD: Tensor, base_TD: Tensor) -> Tensor:
        nodes, shares = np.polynomial.legendre.leggauss(self.steps)
        alphas = torch.tensor((nodes + 1) / 2, dtype=x_TD.dtype, device=x_TD.device)
        parts = torch.tensor(shares / 2, dtype=x_TD.dtype, device=x_TD.device)
        total_TD = torch.zeros_like(x_TD)
        each = max(1, TOKENS_AT_ONCE // len(x_TD))
        for begin in range(0, self.steps, each):
            some = slice(begin, begin + each)
            x_RTD = base_TD + alphas[some, None, None] * (x_TD - base_TD)
            total_TD += torch.einsum("r,rtd->td", parts[some], gradients(text, x_RTD))
        return total_TD

    def facts(self) -> dict[str, float]:
        """How far the weights' sum is from what is explained, as a share of it, and the steps."""
        return {"missed": self.missed, "steps": self.steps}
