"""A batch taken in parts is the batch; memory that runs out says what would have fitted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmctl.data.shards.windows import Rows
from llmctl.errors import ResourceError
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.layers.packing import CU_SEQLENS_STEP, PackedSequences
from llmctl.tasks.causal_lm.batches import CausalBatch, collate
from llmctl.tasks.causal_lm.loss import causal_lm_loss
from llmctl.tasks.masked_lm.batches import MaskedBatch
from llmctl.tasks.masked_lm.loss import masked_lm_loss
from llmctl.training.batches import LossParts, Objective, TensorBatch
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.processes import World, recompute_activations
from llmctl.training.planning.memory import kept_for_backward, largest_part
from llmctl.training.trainer import Trainer
from tests.training.test_trainer import Regression, numbers

VOCABULARY, T = 20, 12


def causal_model() -> CausalLM:
    torch.manual_seed(0)
    architecture = ARCHITECTURES["gpt"]
    shape = {**architecture.presets["nano"], "num_layers": 2, "max_positions": T}
    return CausalLM(architecture.build(architecture.config(vocab_size=VOCABULARY, **shape)))  # type: ignore[arg-type]


def causal_batch(rows: int = 5) -> CausalBatch:
    generator = np.random.default_rng(1)
    ids = generator.integers(2, VOCABULARY, (rows, T + 1))
    ids[:, 5], ids[:, 6] = 1, 0  # a document ends, another begins
    begins = np.where(np.arange(T + 1) < 6, 0, 6) * np.ones((rows, 1), dtype=np.int64)
    known = generator.integers(7, T + 2, rows)
    return collate(
        Rows(ids=ids, begins=begins, known=known, positions=np.arange(rows)), start=0, end=1,
        token_bytes=np.arange(VOCABULARY), document_mask=True,
    )  # fmt: skip


def masked_model() -> MaskedLM:
    torch.manual_seed(0)
    architecture = ARCHITECTURES["bert"]
    shape = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_positions": T}
    return MaskedLM(architecture.build(architecture.config(vocab_size=VOCABULARY, **shape)))  # type: ignore[arg-type]


def masked_batch(rows: int = 5) -> MaskedBatch:
    generator = np.random.default_rng(2)
    numbers_BT = np.sort(generator.integers(0, 4, (rows, T)), axis=1)
    ids = torch.from_numpy(generator.integers(0, VOCABULARY, (rows, T)))
    masked = torch.from_numpy(np.sort(generator.choice(rows * T, 9, replace=False)))
    firsts = torch.arange(rows) * T
    return MaskedBatch(
        np.count_nonzero(numbers_BT, axis=1), ids, torch.zeros_like(ids),
        torch.arange(T).repeat(rows, 1), PackedSequences.of(numbers_BT), masked,
        ids.flatten()[masked],
        firsts, torch.arange(rows) % 2, True,
    )  # fmt: skip


def gradient(
    objective: Objective, parts: list[TensorBatch], counts: dict[str, int]
) -> list[Tensor]:
    objective.zero_grad()
    for part in parts:
        losses = objective(part)
        sum(r.total / counts[name] for name, r in losses.losses.items()).backward()
    return [p.grad.clone() for p in objective.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("make_model", "loss", "make_batch"),
    [
        (causal_model, causal_lm_loss, causal_batch),
        (masked_model, masked_lm_loss, masked_batch),
    ],
)
@settings(max_examples=5, deadline=None)
@given(edges=st.sets(st.integers(1, 4)))
def test_parts_of_a_batch_have_its_gradient(
    make_model: Callable[[], nn.Module],
    loss: Callable[[Any, Any], LossParts],
    make_batch: Callable[[], TensorBatch],
    edges: set[int],
):
    objective, batch = Objective(make_model(), loss), make_batch()
    cuts = [0, *sorted(edges), len(batch)]
    parts = [batch.rows(a, b) for a, b in pairwise(cuts)]
    assert sum(part.real_tokens for part in parts) == batch.real_tokens
    assert sum(part.num_positions for part in parts) == batch.num_positions
    whole = gradient(objective, [batch], batch.loss_denominators)
    for ours, theirs in zip(
        gradient(objective, parts, batch.loss_denominators), whole, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for name, count in batch.loss_denominators.items():
        assert sum(part.loss_denominators[name] for part in parts) == count


def test_texts_know_where_each_begins():
    texts = PackedSequences.of(np.asarray([[1, 1, 2, 0], [1, 1, 1, 1]]))
    assert texts.cu_seqlens[:5].tolist() == [0, 2, 3, 4, 8]
    assert (texts.cu_seqlens[5:] == 8).all()
    assert len(texts.cu_seqlens) == CU_SEQLENS_STEP
    assert texts.attention_mask()[0].int().tolist() == [
        [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1],
    ]  # fmt: skip
    assert texts.rows(1, 2).cu_seqlens[:2].tolist() == [0, 4]


def trained(
    folder: Path, model: nn.Module, world: World | None = None, **options: object
) -> Trainer:
    config = TrainingConfig(max_steps=4, learning_rate=0.01, precision="fp32", **options)  # type: ignore[arg-type]
    return Trainer(
        Objective(model, causal_lm_loss), lambda step: causal_batch(), config, total_steps=4,
        seed=0,
        device=torch.device("cpu"), precision="fp32", store=CheckpointStore(folder, keep=1),
        **({"world": world} if world else {}),  # type: ignore[arg-type]
    )  # fmt: skip


def test_micro_batches_and_recomputing_change_nothing(tmp_path: Path):
    weights = []
    for number, options in enumerate(
        [{}, {"micro_batch": 2}, {"micro_batch": 1, "activation_checkpointing": True},
         {"micro_batch": "auto"}]
    ):  # fmt: skip
        model = causal_model()
        list(trained(tmp_path / str(number), model, **options).run())
        weights.append([p.detach().clone() for p in model.parameters()])
    for other in weights[1:]:
        for ours, theirs in zip(other, weights[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_recomputing_keeps_less():
    batch = causal_batch(5)

    def kept(model: CausalLM) -> int:
        return kept_for_backward(lambda: causal_lm_loss(model, batch).total.backward())

    recomputing = causal_model()
    recompute_activations(recomputing)
    assert kept(recomputing) < 0.6 * kept(causal_model())


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_rows_of_all_processes_are_the_batch(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
):
    """Of five rows each of eight processes gets one at most; those without count nothing."""
    monkeypatch.setattr("llmctl.training.step.distribute", lambda model, *rest: model)
    batch = causal_batch()
    taken = []
    for rank in range(size):
        world = World(rank, size, rank, size)
        work = trained(tmp_path, causal_model(), world, micro_batch=2)._local_micro_batches(0)
        assert work.counts == batch.loss_denominators
        assert all(len(part) <= 2 for _, part in work.parts)
        if work.weight:
            taken += [first + row for first, part in work.parts for row in range(len(part))]
    assert taken == list(range(len(batch)))


class Hungry(Regression):
    """Has room for so many rows."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def loss(self, batch: TensorBatch) -> LossParts:
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().loss(batch)


def test_out_of_memory_names_what_would_fit(tmp_path: Path):
    def trainer(room: int, **options: object) -> Trainer:
        config = TrainingConfig(max_steps=3, learning_rate=0.01, precision="fp32", **options)  # type: ignore[arg-type]
        return Trainer(
            Objective(Hungry(room), Hungry.loss), numbers, config, total_steps=3, seed=0,
            device=torch.device("cpu"),
            precision="fp32", store=CheckpointStore(tmp_path, keep=1),
        )  # fmt: skip

    with pytest.raises(ResourceError, match=r"step 1: .* 8 rows .* training.micro_batch=5 "):
        list(trainer(5).run())
    with pytest.raises(ResourceError, match="not even one"):
        list(trainer(0).run())
    assert list(trainer(5, micro_batch=5).run())[-1].step == 3
    assert list(trainer(3, micro_batch="auto").run())[-1].step == 3
    assert not list(tmp_path.glob("*.partial"))


@settings(max_examples=25, deadline=None)
@given(room=st.integers(0, 40), rows=st.integers(1, 40))
def test_the_largest_part_is_found(room: int, rows: int):
    def trial(count: int) -> None:
        if count > room:
            raise torch.OutOfMemoryError("out of memory")

    with mock.patch("gc.collect"):  # which takes long where so much is loaded
        found = largest_part(trial, rows, torch.device("cpu"), nn.Linear(1, 1))
    assert found == min(room, rows)


def test_what_a_row_keeps_is_counted():
    """A square keeps its input, a sum keeps nothing."""
    x = torch.randn(10, 100, requires_grad=True)
    assert kept_for_backward(lambda: (x**2).sum().backward()) == x.nbytes
