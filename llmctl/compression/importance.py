"""What parts of a network matter by the gradient: how its loss would change without them.

A gate ξ = 1 on a channel, a head or what a layer adds has the gradient

    channel f   Σ over o of W₃[o, f] · ∂L/∂W₃[o, f]
    head n      the same of W_O, summed over the entries of the heads that share keys
    layer       Σ over tokens of ∂L/∂layer(x) · (layer(x) − x)

and its size, |∂L/∂ξ|, averaged over rows of calibration, is to first order what leaving the part
out changes (Michel et al. 2019, "Are Sixteen Heads Really Better than One?", §2.3; Molchanov et al.
2019). L is the loss that the network was trained with, of a row.

F channels, I inputs of a matrix, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.models.heads.causal_lm import CausalLM

RowLoss = Callable[[Any, Any], Tensor]
"""The loss of a network on a row: one number."""


@dataclass(frozen=True)
class CalibrationRows:
    """Rows that a network's loss is taken of, one after another."""

    rows: Sequence[Any]
    """A text or an example each; where a loss compares examples, a batch of them."""
    loss: RowLoss


def next_token_loss(model: CausalLM, window_T: Tensor) -> Tensor:
    """The cross-entropy of a window's next tokens, their mean."""
    begin_1TD = model.body(window_T[None, :-1])
    return F.cross_entropy(model.logits(begin_1TD)[0], window_T[1:])


class GateImportance:
    """The sizes of gates' gradients, means over rows."""

    def __init__(self, network: Any, calibration: CalibrationRows) -> None:
        """network: without dropout."""
        layers: list[Any] = list(network.body.layers())
        self.layers = [0.0] * len(layers)
        self._seen: list[tuple[Tensor, Tensor]] = []
        contracts: list[Any] = [part.feed_forward.contract for part in layers]
        outputs: list[Any] = [part.attention.output for part in layers]
        rows: list[list[Tensor]] = [[] for _ in range(2 * len(layers))]
        handles = [part.register_forward_hook(self._keep) for part in layers]
        weights = [part.weight.requires_grad_() for part in (*contracts, *outputs)]
        try:
            for row in calibration.rows:
                self._seen.clear()
                with torch.enable_grad():
                    loss = calibration.loss(network, row)
                    ends = [end for _, end in self._seen]
                    found = torch.autograd.grad(loss, [*weights, *ends])
                for number, (weight, slope) in enumerate(zip(weights, found, strict=False)):
                    rows[number].append((weight.detach() * slope).sum(0))
                for number, (begin, end) in enumerate(self._seen):
                    slope = found[len(weights) + number]
                    gate = float((slope * (end - begin).detach()).sum())
                    self.layers[number] += abs(gate) / len(calibration.rows)
        finally:
            self._seen.clear()
            for handle in handles:
                handle.remove()
            for weight in weights:
                weight.requires_grad_(False)
        stacked = [torch.stack(part) for part in rows]
        self._channels, self._heads = stacked[: len(layers)], stacked[len(layers) :]

    def channels(self, layer: int) -> Tensor:
        """The importance of each channel of a layer's feed-forward network (F,)."""
        return self._channels[layer].abs().mean(0)

    def heads(self, layer: int, groups: int) -> Tensor:
        """The importance of each group of a layer's heads (K,)."""
        return self._heads[layer].unflatten(1, (groups, -1)).sum(-1).abs().mean(0)

    def _keep(self, module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._seen.append((inputs[0], output))
