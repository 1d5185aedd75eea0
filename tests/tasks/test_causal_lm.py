"""Causal language modelling: what is scored, and what the loss is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmctl.data.shards.windows import Rows
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.tasks.causal_lm.batches import collate
from llmctl.tasks.causal_lm.loss import causal_lm_loss

BYTES = np.array([0, 0, 1, 2, 3, 1, 1, 1, 1, 1])


def rows(ids: list[list[int]], begins: list[list[int]], known: list[int] | None = None) -> Rows:
    table = np.array(ids)
    return Rows(
        table,
        np.array(begins),
        np.array(known or [table.shape[1]] * len(table)),
        np.arange(len(table)),
    )


def test_every_next_token_is_scored_and_its_bytes_counted():
    batch = collate(
        rows([[0, 2, 3, 0, 4]], [[0, 0, 0, 3, 3]]),
        start=0, end=0, token_bytes=BYTES, document_mask=False,
    )  # fmt: skip
    assert batch.input_ids_BT.tolist() == [[0, 2, 3, 0]]
    assert batch.labels_BT.tolist() == [[2, 3, 0, 4]]  # the end, which starts the next, too
    assert (batch.scored, batch.scored_bytes) == (4, 1 + 2 + 0 + 3)
    assert batch.packed is None


def test_the_start_after_an_end_is_not_scored():
    batch = collate(
        rows([[0, 2, 1, 0, 4, 1]], [[0, 0, 0, 3, 3, 3]]),
        start=0, end=1, token_bytes=BYTES, document_mask=False,
    )  # fmt: skip
    assert batch.labels_BT.tolist() == [[2, 1, IGNORED, 4, 1]]
    assert (batch.scored, batch.scored_bytes) == (4, 4)


def test_what_is_beyond_the_split_is_not_scored():
    batch = collate(
        rows([[0, 2, 3, 4, 5], [6, 7, 0, 2, 2]], [[0] * 5, [-5] * 5], [5, 3]),
        start=0, end=0, token_bytes=BYTES, document_mask=False,
    )  # fmt: skip
    assert batch.labels_BT[1].tolist() == [7, 0, IGNORED, IGNORED]
    assert (batch.scored, batch.real_tokens, batch.num_positions) == (6, 6, 8)


def test_documents_are_kept_apart_where_asked():
    batch = collate(
        rows([[5, 6, 0, 2, 3, 0]], [[-3, -3, 2, 2, 2, 5]]),
        start=0, end=0, token_bytes=BYTES, document_mask=True,
    )  # fmt: skip
    assert batch.packed is not None
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.packed.attention_mask(causal=True)[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("arch", ["gpt", "llama", "nanochat"])
def test_the_loss_is_the_cross_entropy_of_the_logits(arch: str):
    architecture = ARCHITECTURES[arch]
    torch.manual_seed(0)
    config = architecture.config(vocab_size=10, **architecture.presets["nano"])  # type: ignore[arg-type]
    model = CausalLM(architecture.build(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    batch = collate(
        rows([[0, 2, 3, 4, 1, 0, 5], [0, 9, 8, 1, 0, 5, 1]], [[0] * 7, [0] * 7]),
        start=0, end=1, token_bytes=BYTES, document_mask=False,
    )  # fmt: skip
    logits = model.logits(model.body(batch.input_ids_BT))
    labels = batch.labels_BT.flatten()
    nll = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
    drift = logits.flatten(0, 1).logsumexp(-1)[labels != IGNORED].square().sum()
    model.eval()
    parts = causal_lm_loss(model, batch, z_loss=0.01)
    assert parts.losses["lm_loss"].count == batch.scored == 10
    torch.testing.assert_close(parts.losses["lm_loss"].total, nll, rtol=1e-5, atol=1e-5)
    bits = parts.metrics["bits_per_byte"]
    assert float(bits.mean) == pytest.approx(float(nll.detach()) / math.log(2) / bits.count)
    model.train()
    with_drift = causal_lm_loss(model, batch, z_loss=0.01).losses["lm_loss"].total
    torch.testing.assert_close(with_drift, nll + 0.01 * drift, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(with_drift, list(model.parameters()), retain_graph=True)
    expected = torch.autograd.grad(nll + 0.01 * drift, list(model.parameters()))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
