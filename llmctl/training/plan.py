"""What a pretraining will take, before it starts: parameters, operations, memory, time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from llmctl.models.bert import BertConfig
from llmctl.training.precision import matrix_rate

ASSUMED_UTILISATION = 0.6
"""Share of the machine's matrix rate that training reaches; measured in tests/benchmarks."""
BYTES_OF_STATE = 16
"""For each parameter in fp32: weight, gradient and AdamW's two moments."""
ACTIVATIONS_PER_BLOCK = 17
"""Values of the width kept for the backward pass, for each token of each post-norm block: its
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


def plan_masked_lm(
    model: nn.Module,
    config: BertConfig,
    *,
    sequence_length: int,
    batch_size: int,
    mask_rate: float,
    total_steps: int | None,
    device: torch.device,
    precision: str,
) -> Plan:
    """The plan of a masked-LM pretraining; ``model`` may be on the meta device."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_layers
    blocks = layers * (4 * width**2 + 2 * width * inner)
    attention = layers * 2 * sequence_length * width
    head = mask_rate * (width * config.vocab_size + width**2)
    # Six operations for each weight and token: two forward, four backward (Kaplan et al. 2020).
    flops_per_token = 6.0 * (blocks + attention + head)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = sequence_length * batch_size
    activations = 4.0 * tokens * layers * (ACTIVATIONS_PER_BLOCK * width)
    logits = 3 * 4.0 * tokens * mask_rate * config.vocab_size
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Plan(
        parameters=parameters,
        flops_per_token=flops_per_token,
        tokens_per_step=tokens,
        total_steps=total_steps,
        memory_bytes=BYTES_OF_STATE * parameters + activations + logits,
        matrix_flops=matrix_rate(device, dtype),
    )
