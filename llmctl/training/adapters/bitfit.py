"""BitFit: train the biases alone (Ben Zaken et al. 2022, arXiv:2106.10199).

Those of the linear layers and of the norms, which are weights of the model itself: nothing is
added. PEFT has no method of the name; what it keeps of a LoRA with ``bias="all"`` is the same, so
biases lie in its layout beside an addition that is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from llmctl.errors import ConfigError
from llmctl.formats.base import Pretrained
from llmctl.formats.peft.writing import Learned, their_layers
from llmctl.training.adapters.base import Method, freeze_all_but

CARRIER = "attention.output"
"""The layer of the first block that has an addition of zero in PEFT's layout."""


class BitFit(Method):
    """The biases train."""

    name, rate = "bitfit", 10.0
    new_rate = 0.3

    def check(self, config: Any, base: Pretrained) -> None:
        super().check(config, base)
        if not _biases(name for name in base.tensors if name.startswith("body.")):
            raise ConfigError(
                f"--method bitfit trains biases, and a {base.spec.name} has none; take ia3 or lora"
            )

    def prepare(self, model: nn.Module, config: Any, base: Pretrained, new: Sequence[str]) -> None:
        freeze_all_but(model, new)
        body: Any = model.body
        parameters = dict(body.named_parameters())
        for name in _biases(parameters):
            parameters[name].requires_grad_(True)

    def learned(self, model: nn.Module, config: Any, base: Pretrained) -> Learned:
        body: Any = model.body
        state = {name: tensor.detach() for name, tensor in body.state_dict().items()}
        trained = {name: state[name] for name in _biases(state)}
        name = next(name for name, _ in body.named_modules() if name.endswith(CARRIER))
        layer = body.get_submodule(name)
        carriers = their_layers(name, layer.out_features, base.spec, base.config)
        [(carrier, _, transposed)] = carriers
        tensors = {
            theirs: tensor.clone()
            for theirs, tensor in base.spec.export_tensors(trained, base.config).items()
        }
        if f"{carrier}.bias" in tensors:
            # PEFT keeps the layer itself behind this name.
            tensors[f"{carrier}.base_layer.bias"] = tensors.pop(f"{carrier}.bias")
        tensors[f"{carrier}.lora_A.weight"] = torch.zeros(1, layer.in_features)
        tensors[f"{carrier}.lora_B.weight"] = torch.zeros(layer.out_features, 1)
        fields = {
            "peft_type": "LORA",
            "r": 1,
            "lora_alpha": 1,
            "lora_dropout": 0.0,
            "target_modules": [carrier],
            "fan_in_fan_out": transposed,
            "bias": "all",
            "init_lora_weights": True,
        }
        return Learned(fields, tensors)


def _biases(names: Iterable[str]) -> list[str]:
    """Those of a body's tensors that are biases."""
    return [name for name in names if name.endswith(".bias")]
