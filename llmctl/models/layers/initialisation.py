"""Fresh weights."""

from __future__ import annotations

import torch
from torch import nn


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights and zero biases, as BERT and GPT-2 start; to be used with ``apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        with torch.no_grad():
            module.weight.normal_(0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
