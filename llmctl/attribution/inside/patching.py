"""Activation patching between two texts (Vig et al. 2020; Meng et al. 2022, §2): into the second
text's pass one state of the first's is put at a time, and it is measured how much of the first
text's answer comes back.

    recovered = (F(second, patched) − F(second)) / (F(first) − F(second))

L layers, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmctl.attribution.explained import ExplainedText
from llmctl.attribution.inside.base import Insight, Subject, Way
from llmctl.attribution.inside.states import recorded_reading
from llmctl.errors import InputError
from llmctl.models.spec import Backbone
from llmctl.reporting.report import ReportTable
from llmctl.reporting.units import figure

LEAST_DIFFERENCE = 1e-6
"""Where the two texts' numbers are nearer, there is nothing to recover."""
SHOWN_PLACES = 4
"""Places where the texts differ that are shown; the record has all."""


def _score_with(text: ExplainedText, layer: nn.Module, ids_T: Tensor, states_TD: Tensor) -> Tensor:
    """The numbers (T,) of as many rows of one text, in row t the state of token t replaced behind
    a layer."""
    T = len(ids_T)
    places = torch.arange(T, device=ids_T.device)

    def replaced(module: nn.Module, inputs: tuple[Any, ...], output_RTD: Tensor) -> Tensor:
        output_RTD = output_RTD.clone()
        output_RTD[places, places] = states_TD
        return output_RTD

    handle = layer.register_forward_hook(replaced)
    try:
        return text.score(ids_T.expand(T, -1))
    finally:
        handle.remove()


@torch.no_grad()
def recovered(
    body: Backbone, first: ExplainedText, second: ExplainedText
) -> tuple[Tensor, float, float]:
    """What comes back (L, T) by each layer's state of each token, and F of both texts.

    Raises InputError where the texts' tokens don't stand side by side, or their numbers are one.
    """
    if len(first.ids_T) != len(second.ids_T):
        raise InputError(
            f"the texts have {len(first.ids_T)} and {len(second.ids_T)} tokens, and states are put "
            "from one into the other token by token; write texts of equally many tokens"
        )
    with recorded_reading(body) as states:
        whole = float(first.score(first.ids_T[None]))
    other = float(first.score(second.ids_T[None]))
    if abs(whole - other) < LEAST_DIFFERENCE:
        raise InputError(
            f"{first.answer} is as likely by both texts, so there is nothing to recover; write "
            "texts that differ in it, or ask for another --answer"
        )
    numbers = [
        _score_with(first, layer, second.ids_T, state[0, : len(first.ids_T)]).double()
        for layer, state in zip(body.layers(), states[1:], strict=True)
    ]
    return (torch.stack(numbers) - other) / (whole - other), whole, other


class Patching(Way):
    """Which states carry what two texts differ in."""

    name = "patch"
    described = "which states carry what two texts differ in (Meng et al. 2022)"
    num_texts = 2

    def look(self, subject: Subject) -> Insight:
        """The first text's answer, in the second's pass."""
        first, second = subject.texts
        found_LT, whole, other = recovered(subject.body, first, second)
        tokens = [subject.tokens(text) for text in (first, second)]
        shown = _shown_places(first.ids_T, second.ids_T)
        headings = [
            f"{place + 1}: {tokens[1][place]} → {tokens[0][place]}"
            if tokens[0][place] != tokens[1][place]
            else f"{place + 1}: {tokens[0][place]}"
            for place in shown
        ]
        others = [place for place in range(len(tokens[0])) if place not in shown]
        rows = []
        for layer, found_T in enumerate(found_LT.tolist(), 1):
            cells = [f"{found_T[place]:+.2f}" for place in shown]
            rest = max((found_T[place] for place in others), key=abs, default=None)
            rows.append([f"layer {layer}", *cells, figure(rest, "+.2f")])
        record = {
            "texts": [first.text, second.text],
            "answer": first.answer,
            "numbers": [whole, other],
            "tokens": tokens,
            "recovered": found_LT.tolist(),
        }
        return Insight(
            record,
            [
                ReportTable(
                    f"{subject.name}: recovered of {first.answer}",
                    [*headings, "most by another"],
                    rows,
                ),
                f"its number is {whole:.3f} by the first text and {other:.3f} by the second; 1: "
                "all of it comes back with that one state, 0: nothing",
            ],
        )


def _shown_places(first_T: Tensor, second_T: Tensor) -> list[int]:
    """The places that a table has room for: those that differ, the first few, and the last."""
    different = (first_T != second_T).nonzero().flatten().tolist()
    return sorted({*different[:SHOWN_PLACES], len(first_T) - 1})
