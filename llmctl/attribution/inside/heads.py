"""How much an answer owes to each head and to each neuron of the feed-forward networks.

A head: what the answer's number loses where the head gives nothing, one pass each (Michel et al.
2019, §3.2). Beside it, and for each neuron, the gradient times the activation, Σ_t a ∂F/∂a, which
estimates the same to first order (Michel et al. 2019, eq. 2; Molchanov et al. 2017, eq. 8); of the
strongest neurons it is measured as well.

S texts, T tokens, L layers, N heads, H head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.attribution.explained import ExplainedText
from llmctl.attribution.inside.base import Insight, Subject, Way, head_inputs
from llmctl.reporting.heat_maps import HeatMap
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


def number_of(text: ExplainedText) -> float:
    """The answer's number."""
    return float(text.score(text.ids_T[None]))


def number_without(text: ExplainedText, linear: nn.Linear, columns: slice) -> float:
    """The answer's number where a layer sees 0 in some columns."""
    with without(linear, columns):
        return number_of(text)


def by_gradient(
    text: ExplainedText, projections: list[nn.Linear], contracts: list[nn.Linear]
) -> tuple[list[Tensor], list[Tensor]]:
    """Σ a ∂F/∂a of what each layer's projections take: (N·H,) of its heads' outputs, (F,) of its
    neurons, summed over tokens."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        x = x if x.requires_grad else x.requires_grad_(True)
        seen.append(x)
        return (x, *inputs[1:])

    linears = [linear for pair in zip(projections, contracts, strict=True) for linear in pair]
    handles = [linear.register_forward_pre_hook(keep) for linear in linears]
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(text.score(text.ids_T[None]).sum(), seen)
    finally:
        for handle in handles:
            handle.remove()
    # An answer of several tokens takes a pass for each word.
    sums = [torch.zeros(linear.in_features, dtype=torch.float64) for linear in linears]
    for number, (x, gradient) in enumerate(zip(seen, gradients, strict=True)):
        product = (x * gradient).detach().double().flatten(0, -2).sum(0)
        sums[number % len(linears)] += product.cpu()
    return sums[0::2], sums[1::2]


class Importance(Way):
    """What the answer loses without each head, and without each of the strongest neurons; over
    several texts, on average."""

    name = "heads"
    described = "what the answer loses without each head or neuron (Michel et al. 2019)"
    takes = "texts"

    def look(self, subject: Subject) -> Insight:
        """The record has all heads, and as many neurons as are shown."""
        layers, texts = subject.body.layers(), subject.texts
        projections = [head_inputs(module) for module in layers]
        contracts = [_contract(module) for module in layers]
        N, count = subject.body.config.num_heads, len(texts)
        # By the gradient: one pass back through each text.
        of_heads, of_neurons = [], []
        for number, text in enumerate(texts, 1):
            heads, neurons = by_gradient(text, projections, contracts)
            of_heads.append(torch.stack([one.unflatten(0, (N, -1)).sum(-1) for one in heads]))
            of_neurons.append(torch.stack(neurons))
            subject.progress("gradients", number, count)
        heads_SLN, neurons_SLF = torch.stack(of_heads), torch.stack(of_neurons)
        # By leaving each head out, and the neurons that the gradient finds strongest.
        with torch.no_grad():
            whole_S = [number_of(text) for text in texts]
        found: list[dict[str, Any]] = []
        for layer, linear in enumerate(projections):
            H = linear.in_features // N
            for head in range(N):
                columns = slice(head * H, (head + 1) * H)
                estimates_S = heads_SLN[:, layer, head].tolist()
                figures = _figures(texts, whole_S, linear, columns, estimates_S)
                found.append({"layer": layer, "head": head, **figures})
                subject.progress("heads", len(found), len(layers) * N)
        strongest = neurons_SLF.abs().mean(0).flatten()
        F, neurons_found = neurons_SLF.shape[-1], []
        for number in strongest.topk(min(SHOWN_NEURONS, len(strongest))).indices.tolist():
            layer, neuron = divmod(number, F)
            estimates_S = neurons_SLF[:, layer, neuron].tolist()
            column = slice(neuron, neuron + 1)
            figures = _figures(texts, whole_S, contracts[layer], column, estimates_S)
            neurons_found.append({"layer": layer, "neuron": neuron, **figures})
        size = "lost" if count == 1 else "size"
        found.sort(key=lambda one: -abs(one[size]))
        record = self._of_texts(texts, whole_S) | {"heads": found, "neurons": neurons_found}
        shown = _map_of(found, len(layers), N)
        return Insight(record, self._parts(subject, record), [shown])

    @staticmethod
    def _of_texts(texts: Sequence[ExplainedText], whole_S: list[float]) -> dict[str, Any]:
        if len(texts) == 1:
            return {"text": texts[0].text, "answer": texts[0].answer, "number": whole_S[0]}
        return {"texts": len(texts), "number": sum(whole_S) / len(whole_S)}

    @staticmethod
    def _parts(subject: Subject, record: dict[str, Any]) -> list[Any]:
        many = "texts" in record
        names = ["size", "lost", "share", "estimate"] if many else ["lost", "estimate"]
        headings = {
            "size": "changed without it",
            "lost": "lost without it",
            "share": "texts that lose",
            "estimate": "by the gradient",
        }

        def rows(kind: str, count: int) -> list[list[str]]:
            shown = record[f"{kind}s"][:count]
            written = {name: ".4f" if name == "size" else "+.4f" for name in names}
            written["share"] = ".0%"
            return [
                [f"{one['layer']}.{one[kind]}", *(format(one[n], written[n]) for n in names)]
                for one in shown
            ]

        said = f"over {record['texts']} texts" if many else f"for {record['answer']}"
        heads = [headings[name] for name in names]
        title = f"{subject.name}: heads, {said}"
        mean = ", on average" if many else ""
        return [
            ReportTable(title, heads, rows("head", SHOWN_LOSSES)),
            ReportTable("neurons", heads, rows("neuron", SHOWN_NEURONS)),
            f"of the answer's number, {record['number']:.4f}{mean}: a logit or a log-probability; "
            "below 0 the answer would be stronger without it",
        ]


def _map_of(heads: Sequence[dict[str, Any]], layers: int, count: int) -> HeatMap:
    """What is lost without each head, by layer."""
    lost = {(one["layer"], one["head"]): float(one["lost"]) for one in heads}
    values = [[lost[layer, head] for head in range(count)] for layer in range(layers)]
    return HeatMap(
        "what the answer loses without each head",
        [f"head {head}" for head in range(count)],
        [f"layer {layer}" for layer in range(layers)],
        values,
        [[f"{value:+.2f}" for value in row] for row in values],
    )


@torch.no_grad()
def _figures(
    texts: Sequence[ExplainedText],
    whole_S: list[float],
    linear: nn.Linear,
    columns: slice,
    estimates_S: list[float],
) -> dict[str, float]:
    """What texts' numbers lose without some inputs of a layer, beside what the gradient tells; of
    several texts means, and the mean of what changes either way."""
    lost_S = [
        whole - number_without(text, linear, columns)
        for text, whole in zip(texts, whole_S, strict=True)
    ]
    mean = {
        "lost": sum(lost_S) / len(lost_S),
        "estimate": sum(estimates_S) / len(estimates_S),
    }
    if len(texts) == 1:
        return mean
    size = sum(map(abs, lost_S)) / len(lost_S)
    return {**mean, "size": size, "share": sum(lost > 0 for lost in lost_S) / len(lost_S)}


def _contract(layer: nn.Module) -> nn.Linear:
    found = layer.get_submodule("feed_forward").get_submodule("contract")
    assert isinstance(found, nn.Linear)
    return found
