"""Weights from gradients with respect to the token embeddings.

R rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmctl.attribution.explained import TOKENS_AT_ONCE, AttributionMethod, ExplainedText, Floats
from llmctl.reporting.explanation import MISSED_SHARE

FEWEST_PATH_STEPS, STRICT_PATH_STEPS, MOST_PATH_STEPS = 32, 512, 2048
"""Steps at least and at most, and those up to which what stretches miss must not cancel out."""
FIRST_STRETCHES, STRETCH_STEPS = 8, 4
"""Stretches that a way is divided into first, and the steps of each."""
HALVED_SHARE = 0.9
"""Share of what is missed that the halved stretches have."""


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

    by Gauss and Legendre's rule. The weights sum up to F(x) − F(x₀). Where they don't within 1 %,
    the way is divided: what each stretch of it has to sum up to is known from F at its ends, and
    those that are furthest from it are halved until all together miss less. Where a normalisation
    comes first, nearly all may happen in a thousandth of the way.
    """

    name = "integrated-gradients"
    described = "integrated gradients (Sundararajan et al. 2017)"

    def __init__(self) -> None:
        self.missed, self.steps = 0.0, 0

    def weights(self, text: ExplainedText) -> Floats:
        """The integral, summed over a word's tokens."""
        way = _Way(text)
        base, full = way.numbers(np.array([0.0, 1.0]))
        whole = float(full - base)
        allowed = MISSED_SHARE * max(abs(whole), 1e-6)
        self.steps = FEWEST_PATH_STEPS
        total_T = way.integrals(np.array([[0.0, 1.0]]), FEWEST_PATH_STEPS)[0]
        if abs(float(total_T.sum()) - whole) > allowed:
            total_T = self._divided(way, allowed)
        found = text.of_words(torch.from_numpy(total_T))
        self.missed = abs(float(found.sum() - whole)) / max(abs(whole), 1e-6)
        return found

    def _divided(self, way: _Way, allowed: float) -> Floats:
        """The integral (T,), halving the stretches that miss most."""
        edges = np.linspace(0.0, 1.0, FIRST_STRETCHES + 1)
        numbers = way.numbers(edges)
        bounds_S2 = np.stack([edges[:-1], edges[1:]], axis=1)
        expected_S = np.diff(numbers)
        parts_ST = way.integrals(bounds_S2, STRETCH_STEPS)
        self.steps += STRETCH_STEPS * len(bounds_S2)
        ends_S2 = np.stack([numbers[:-1], numbers[1:]], axis=1)
        while self.steps < MOST_PATH_STEPS:
            signed_S = parts_ST.sum(1) - expected_S
            missed_S = np.abs(signed_S)
            # After many steps it is fp32's last digits that stretches miss, one way and the other.
            enough = self.steps >= STRICT_PATH_STEPS and abs(signed_S.sum()) <= allowed
            if missed_S.sum() <= allowed or enough:
                break
            # The fewest that miss most of it all.
            order = np.argsort(-missed_S)
            share = np.cumsum(missed_S[order]) / missed_S.sum()
            worst = order[: int(np.searchsorted(share, HALVED_SHARE)) + 1]
            kept = np.setdiff1d(np.arange(len(missed_S)), worst)
            middles = bounds_S2[worst].mean(1)
            between = way.numbers(middles)
            halves_S2 = np.concatenate(
                [
                    np.stack([bounds_S2[worst, 0], middles], axis=1),
                    np.stack([middles, bounds_S2[worst, 1]], axis=1),
                ]
            )
            new_S2 = np.concatenate(
                [
                    np.stack([ends_S2[worst, 0], between], axis=1),
                    np.stack([between, ends_S2[worst, 1]], axis=1),
                ]
            )
            new_ST = way.integrals(halves_S2, STRETCH_STEPS)
            self.steps += STRETCH_STEPS * len(halves_S2)
            bounds_S2 = np.concatenate([bounds_S2[kept], halves_S2])
            ends_S2 = np.concatenate([ends_S2[kept], new_S2])
            parts_ST = np.concatenate([parts_ST[kept], new_ST])
            expected_S = ends_S2[:, 1] - ends_S2[:, 0]
        total_T: Floats = parts_ST.sum(0)
        return total_T

    def facts(self) -> dict[str, float]:
        """How far the weights' sum is from what is explained, as a share of it, and the steps."""
        return {"missed": self.missed, "steps": self.steps}


class _Way:
    """The straight way from a text without its words to the text."""

    def __init__(self, text: ExplainedText) -> None:
        self._text = text
        x_TD, self._base_TD = _vectors(text, kept=True), _vectors(text, kept=False)
        self._way_TD = x_TD - self._base_TD

    def _at(self, alphas_R: NDArray[np.float64]) -> Tensor:
        """The embeddings (R, T, D) at some places, from 0 to 1."""
        alphas = torch.tensor(alphas_R, dtype=self._way_TD.dtype, device=self._way_TD.device)
        return self._base_TD + alphas[:, None, None] * self._way_TD

    def _pieces(self, count: int) -> Iterator[slice]:
        each = max(1, TOKENS_AT_ONCE // len(self._way_TD))
        for begin in range(0, count, each):
            yield slice(begin, begin + each)

    @torch.no_grad()
    def numbers(self, alphas_R: NDArray[np.float64]) -> Floats:
        """The answer's number (R,) at some places."""
        text, found = self._text, []
        for some in self._pieces(len(alphas_R)):
            x_RTD = self._at(alphas_R[some])
            with embedded_as(text.embedding, x_RTD, text.passes):
                found.append(text.score(text.ids_T.expand(len(x_RTD), -1)).double().cpu().numpy())
        numbers_R: Floats = np.concatenate(found)
        return numbers_R

    def integrals(self, bounds_S2: NDArray[np.float64], steps: int) -> Floats:
        """The gradient times the way, integrated over each of some stretches: (S, T)."""
        nodes, shares = np.polynomial.legendre.leggauss(steps)
        lengths_S = np.diff(bounds_S2, axis=1)
        alphas_R = (bounds_S2[:, :1] + lengths_S * (nodes + 1) / 2).reshape(-1)
        shares_R = (lengths_S * shares / 2).reshape(-1)
        products = []
        for some in self._pieces(len(alphas_R)):
            gradient_RTD = gradients(self._text, self._at(alphas_R[some]))
            products.append((gradient_RTD * self._way_TD).sum(-1).double().cpu().numpy())
        weighted_RT = np.concatenate(products) * shares_R[:, None]
        found_ST: Floats = weighted_RT.reshape(len(bounds_S2), steps, -1).sum(1)
        return found_ST
