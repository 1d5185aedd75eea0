"""Freezing: what is frozen stays to the bit and gets no gradient, the rest moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llmctl.data.tables.encoded import EncodedExample
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.tasks.causal_lm.loss import causal_lm_loss
from llmctl.tasks.classify.batches import collate as collate_examples
from llmctl.tasks.classify.loss import classification_loss
from llmctl.tasks.instruct.batches import InstructExample
from llmctl.tasks.instruct.batches import collate as collate_conversations
from llmctl.training.adapters.freezing import freeze_layers
from llmctl.training.batches import LossParts, TensorBatch
from llmctl.training.config import TrainingConfig
from llmctl.training.optim.optimiser import build_optimiser

V, LAYERS = 50, 3
DECODERS = ["gpt", "llama", "nanochat"]


def tiny(name: str, *, classify: bool) -> nn.Module:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    body = architecture.build(
        architecture.config(
            vocab_size=V, num_layers=LAYERS, hidden_size=32, num_heads=2, max_positions=64,
            initializer_range=0.2,
        )
    )  # fmt: skip
    model = Classifier(body, 3, dropout=0.0) if classify else CausalLM(body)
    with torch.no_grad():  # nanochat's blocks begin as the identity
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def batch(seed: int, *, classify: bool) -> TensorBatch:
    generator = np.random.default_rng(seed)
    texts = [generator.integers(5, V, 12) for _ in range(8)]
    if classify:
        return collate_examples([EncodedExample(ids, 6, number % 3)
                                 for number, ids in enumerate(texts)], 0)  # fmt: skip
    examples = [InstructExample(ids, np.arange(12) > 4) for ids in texts]
    return collate_conversations([examples], token_bytes=np.ones(V, dtype=np.int64))


def loss_of(model: Any, batch: Any) -> LossParts:
    loss = classification_loss if isinstance(model, Classifier) else causal_lm_loss
    return loss(model, batch)


def train(model: nn.Module, *, classify: bool) -> None:
    config = TrainingConfig(learning_rate=0.01, weight_decay=0.1)
    optimiser = build_optimiser(model, config)
    for step in range(3):
        optimiser.zero_grad()
        loss = loss_of(model.train(), batch(step, classify=classify))
        loss.total.backward()
        optimiser.step()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "classify"),
    [
        ("bert", True),
        ("modernbert", True),
        *((name, task) for name in DECODERS for task in (True, False)),
    ],
)
def test_frozen_layers_stay_bit_for_bit_and_get_no_gradient(name: str, classify: bool, count: int):
    model = tiny(name, classify=classify)
    freeze_layers(model, count)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, classify=classify)
    kept = [
        "body.token_embedding.",
        "body.position_embedding.",
        "body.segment_embedding.",
        "body.embedding_norm.",
        *(f"body.blocks.{number}." for number in range(count)),
        # A BERT's is the embeddings', a decoder's follows the blocks.
        *(["body.norm."] if name == "bert" else []),
    ]
    for key, parameter in model.named_parameters():
        if key.startswith(tuple(kept)):
            assert parameter.grad is None, key
            assert torch.equal(parameter, before[key]), key
        else:
            assert parameter.grad is not None, key
            assert not torch.equal(parameter, before[key]), key
