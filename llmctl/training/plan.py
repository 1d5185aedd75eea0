"""What a pretraining will take, before it starts: parameters, operations, memory, time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from llmctl.training.precision import matrix_rate

ASSUMED_UTILISATION = 0.6
"""Share of the machine's matrix rate that training reaches; measured in tests/benchmarks."""
BYTES_OF_STATE = 16
"""For each parameter in fp32: weight, gradient and AdamW's two moments."""
ACTIVATIONS_PER_BLOCK = 17
"""Values of the width kept for the backward pass, for each token of each block: its
inputs and outputs (5), q, k, v (3), the attention's result (1), the feed-forward's two of four
times the width (8)."""


@dataclass(frozen=True)
class Plan:
    """What a training will take. Operations count a multiplication and an addition as two."""

    parameters: int
    flops_per_token: float
    tokens_per_step: int
    total_steps: int | None
    memory_bytes: float
    matrix_flops: float
    """The machine's measured rate of matrix products, a second."""

    @property
    def seconds_per_step(self) -> float:
        work = self.flops_per_token * self.tokens_per_step
        return work / (self.matrix_flops * ASSUMED_UTILISATION)

    @property
    def seconds(self) -> float | None:
        """Of the whole training; None if only the time limits it."""
        return self.total_steps * self.seconds_per_step if self.total_steps else None


def make_plan(
    model: nn.Module,
    *,
    flops_per_token: float,
    tokens_per_step: int,
    num_layers: int,
    hidden_size: int,
    total_steps: int | None,
    device: torch.device,
    precision: str,
) -> Plan:
    """The plan of a pretraining; ``model`` may be on the meta device. The output layer's logits
    are not counted: they are made a few rows at a time."""
    parameters = sum(p.numel() for p in model.parameters())
    activations = 4.0 * tokens_per_step * num_layers * (ACTIVATIONS_PER_BLOCK * hidden_size)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Plan(
        parameters=parameters,
        flops_per_token=flops_per_token,
        tokens_per_step=tokens_per_step,
        total_steps=total_steps,
        memory_bytes=BYTES_OF_STATE * parameters + activations,
        matrix_flops=matrix_rate(device, dtype),
    )
