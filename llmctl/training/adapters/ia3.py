"""(IA)³: learn a factor for each key, value and inner unit (Liu et al. 2022, arXiv:2205.05638).

    softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V),    W₂ (l_ff ⊙ activation(W₁ x))

The factors are 1 at the start, so that training starts from the model as it is. Merged they are
part of the matrices: l_k and l_v multiply rows, l_ff columns.

O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.formats.base import Pretrained
from llmctl.formats.peft.writing import Learned, their_layers
from llmctl.training.adapters.base import Addition, Method, additions_of, freeze_all_but

FUSED_AXES = {"query_key_value": 1, "key_value": 0}
"""Layers whose outputs are keys and values: how many of the parts that they hold stand before."""
INNER = "feed_forward.contract"
"""The layer whose inputs are the inner units."""


class Ia3Linear(Addition):
    """A frozen linear layer with factors of its last outputs, or of its inputs."""

    def __init__(self, base: nn.Linear, *, skipped: int = 0, inputs: bool = False) -> None:
        """skipped: outputs that stay, before those that have factors. inputs: whether the inputs
        have them."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.skipped, self.inputs = skipped, inputs
        count = base.in_features if inputs else base.out_features - skipped
        self.ia3_l = nn.Parameter(base.weight.new_ones(count))

    def factors(self) -> Tensor:
        """The factors of all inputs, or of all outputs, of which those that stay have 1."""
        return torch.cat((self.ia3_l.new_ones(self.skipped), self.ia3_l))

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors().to(x.dtype)
        return self.base(x * factors) if self.inputs else self.base(x) * factors

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer that is both."""
        factors = self.factors()
        self.base.weight.mul_(factors if self.inputs else factors[:, None])
        if self.base.bias is not None and not self.inputs:
            self.base.bias.mul_(factors)
        return self.base


class Ia3(Method):
    """Factors of keys, values and inner units train."""

    name, rate = "ia3", 30.0
    new_rate = 0.1

    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        freeze_all_but(model, new)
        body: Any = model.body
        for block in body.layers():
            for path, module in list(block.named_modules()):
                parent, _, leaf = path.rpartition(".")
                if not isinstance(module, nn.Linear):
                    continue
                owner = block.get_submodule(parent)
                if leaf in FUSED_AXES:
                    fused_rows: Any = owner.fused_rows
                    skipped = sum(fused_rows[leaf][: FUSED_AXES[leaf]])
                    setattr(owner, leaf, Ia3Linear(module, skipped=skipped))
                elif path == INNER:
                    setattr(owner, leaf, Ia3Linear(module, inputs=True))

    def learned(self, model: nn.Module, config: Any, base: Pretrained) -> Learned:
        tensors, inner, transposed = {}, [], False
        for name, layer in additions_of(model).items():
            assert isinstance(layer, Ia3Linear)
            outputs = layer.base.out_features
            factors = layer.factors().detach()
            for theirs, rows, turned in their_layers(name, outputs, base.spec, base.config):
                transposed = transposed or turned
                if layer.inputs:
                    tensors[f"{theirs}.ia3_l"] = factors[None].clone()
                    inner.append(theirs)
                elif int(rows.max()) >= layer.skipped:  # the queries alone have no factors
                    tensors[f"{theirs}.ia3_l"] = factors[rows][:, None]
        fields = {
            "peft_type": "IA3",
            "target_modules": sorted(name.removesuffix(".ia3_l") for name in tensors),
            "feedforward_modules": sorted(inner),
            "fan_in_fan_out": transposed,
            "init_ia3_weights": True,
        }
        return Learned(fields, tensors)
