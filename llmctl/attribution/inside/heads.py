"""How much an answer owes to each head and to each neuron of the feed-forward networks.

A head: what the answer's number loses where the head gives nothing, one pass each (Michel et al.
2019, §3.2). A neuron: the gradient times the activation, Σ_t a ∂F/∂a, which estimates the same to
first order (Molchanov et al. 2017, eq. 8); of the strongest it is measured as well.

T tokens, N heads, H head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.attribution.explained import ExplainedText
from llmctl.attribution.inside.base import Insight, Subject, Way, head_inputs
from llmctl.reporting.report import ReportTable

SHOWN_LOSSES, SHOWN_NEURONS = 12, 10


@contextmanager
def without(linear: nn.Linear, columns: slice) -> Iterator[None]:
    """Let a linear layer see 0 in some of the columns of its input."""

    def emptied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0].clone()
        x[..., columns] = 0
        return (x, *inputs[1:])

    handle = linear.register_forward_pre_hook(emptied)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def lost_without(text: ExplainedText, linear: nn.Linear, columns: slice) -> float:
    """What the answer's number loses where a layer sees 0 in some columns."""
    whole = text.score(text.ids_T[None])
    with without(linear, columns):
        return float(whole - text.score(text.ids_T[None]))


def neuron_weights(text: ExplainedText, contracts: list[nn.Linear]) -> list[Tensor]:
    """Σ_t a ∂F/∂a (F,) of each layer's neurons."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        x = x if x.requires_grad else x.requires_grad_(True)
        seen.append(x)
        return (x, *inputs[1:])

    handles = [linear.register_forward_pre_hook(keep) for linear in contracts]
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(text.score(text.ids_T[None]).sum(), seen)
    finally:
        for handle in handles:
            handle.remove()
    pairs = zip(seen, gradients, strict=True)
    return [(x * gradient).detach().double().flatten(0, -2).sum(0) for x, gradient in pairs]


class Importance(Way):
    """What the answer loses without each head, and without each of the strongest neurons."""

    name = "heads"
    described = "what the answer loses without each head or neuron (Michel et al. 2019)"

    def look(self, subject: Subject) -> Insight:
        """The record has all heads, and as many neurons as are shown."""
        (text,) = subject.texts
        layers = subject.body.layers()
        N = subject.body.config.num_heads
        heads: list[dict[str, Any]] = []
        for layer, module in enumerate(layers):
            linear = head_inputs(module)
            H = linear.in_features // N
            for head in range(N):
                lost = lost_without(text, linear, slice(head * H, (head + 1) * H))
                heads.append({"layer": layer, "head": head, "lost": lost})
        contracts = [_contract(module) for module in layers]
        weights = neuron_weights(text, contracts)
        flat = torch.cat([w.abs() for w in weights])
        neurons: list[dict[str, Any]] = []
        for number in flat.topk(min(SHOWN_NEURONS, len(flat))).indices.tolist():
            layer, neuron = divmod(number, len(weights[0]))
            lost = lost_without(text, contracts[layer], slice(neuron, neuron + 1))
            estimate = float(weights[layer][neuron])
            neurons.append({"layer": layer, "neuron": neuron, "estimate": estimate, "lost": lost})
        heads.sort(key=lambda one: -abs(one["lost"]))
        with torch.no_grad():
            whole = float(text.score(text.ids_T[None]))
        record = {
            "text": text.text,
            "answer": text.answer,
            "number": whole,
            "heads": heads,
            "neurons": neurons,
        }
        return Insight(record, self._parts(subject, text, whole, heads, neurons))

    @staticmethod
    def _parts(
        subject: Subject, text: ExplainedText, whole: float, heads: Any, neurons: Any
    ) -> list[Any]:
        of_heads = [
            [f"{one['layer']}.{one['head']}", f"{one['lost']:+.4f}"] for one in heads[:SHOWN_LOSSES]
        ]
        of_neurons = [
            [f"{one['layer']}.{one['neuron']}", f"{one['lost']:+.4f}", f"{one['estimate']:+.4f}"]
            for one in neurons
        ]
        return [
            ReportTable(f"{subject.name}: heads, for {text.answer}", ["lost without it"], of_heads),
            ReportTable("neurons", ["lost without it", "by the gradient"], of_neurons),
            f"of the answer's number, {whole:.4f}: a logit or a log-probability; below 0 the "
            "answer would be stronger without it",
        ]


def _contract(layer: nn.Module) -> nn.Linear:
    found = layer.get_submodule("feed_forward").get_submodule("contract")
    assert isinstance(found, nn.Linear)
    return found
