"""A rehearsal against models that take a known time and memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmctl.training.batches import LossParts, Objective, SumAndCount, TensorBatch
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.planning import rehearsal
from llmctl.training.planning.rehearsal import (
    WARM_UP,
    StepTimings,
    count_flops,
    measure_training,
    peak_bytes,
    time_steps,
)
from llmctl.training.progress import Progress
from llmctl.training.trainer import Trainer

WIDTH, ROWS = 256, 64


@dataclass(frozen=True)
class Rows(TensorBatch):
    x: Tensor

    @property
    def num_positions(self) -> int:
        return len(self)

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"squares": len(self)}


class Clock:
    """Stands still but where a test lets time pass: others may compute beside it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rehearsal, "time", clock)
    return clock


class Slow(nn.Module):
    """Two layers, in which the clock goes on by a pause."""

    def __init__(self, clock: Clock, pause: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.clock, self.pause = clock, pause

    def loss(self, batch: TensorBatch) -> LossParts:
        assert isinstance(batch, Rows)
        self.clock.sleep(self.pause)
        out = self.second(torch.tanh(self.first(batch.x)))
        return LossParts({"squares": SumAndCount((out**2).sum(), len(out))})


def make(
    store: CheckpointStore, clock: Clock | None = None, pause: float = 0.0, look: float = 0.0
) -> Trainer:
    clock = clock or Clock()

    def batch(number: int) -> Rows:
        generator = torch.Generator().manual_seed(number)
        return Rows(np.ones(ROWS, dtype=np.int64), torch.randn(ROWS, WIDTH, generator=generator))

    def validate() -> dict[str, float]:
        clock.sleep(look)
        return {"loss": 1.0}

    config = TrainingConfig(max_steps=1000, learning_rate=1e-3, precision="fp32")
    return Trainer(
        Objective(Slow(clock, pause), Slow.loss), batch, config, total_steps=1000, seed=0,
        device=torch.device("cpu"),
        precision="fp32", store=store, validate=validate, eval_every=500,
    )  # fmt: skip


def test_steps_validation_and_export_are_timed(tmp_path: Path, clock: Clock):
    written: list[Path] = []

    def build(store: CheckpointStore) -> Trainer:
        clock.sleep(4)
        return make(store, clock, pause=0.1, look=2)

    def export(model: nn.Module, progress: Progress, folder: Path) -> None:
        clock.sleep(3)
        (folder / "model").write_bytes(b"weights")
        written.append(folder)

    found = measure_training(build, export, tmp_path / "here", seconds=1.25)
    assert found.build_seconds == pytest.approx(4)
    assert found.first_seconds == pytest.approx(0.1)
    assert found.seconds_per_step == pytest.approx(0.1)
    assert found.validation_seconds == pytest.approx(2)
    assert found.export_seconds == pytest.approx(3)
    assert found.tokens_per_step == ROWS
    assert len(written) == 1
    # Not the whole training: as many steps as go into that time, and one more.
    assert len(found.step_seconds) == 13 - WARM_UP + 1
    assert CheckpointStore(tmp_path / "here" / "checkpoints", 1).steps() == [14]


@pytest.mark.parametrize(
    ("pauses", "seconds"),
    [([0.5], 3), ([0.5, 1.0], 10), ([0.5] * 9 + [1.0], 3)],
    ids=["steady", "two speeds", "one step of ten is late"],
)
def test_steps_that_are_not_steady_are_watched_for_longer(
    tmp_path: Path, clock: Clock, pauses: list[float], seconds: float
):
    """Steps as long as the pauses, in turns: until their quartiles lie together, or for 10 s."""
    turns = itertools.cycle(pauses)

    def build(store: CheckpointStore) -> Trainer:
        trainer = make(store, clock)
        loss = trainer.objective.loss

        def waiting(model: Slow, batch: TensorBatch) -> LossParts:
            clock.sleep(next(turns))
            return loss(model, batch)

        trainer.objective.loss = waiting
        return trainer

    found = measure_training(build, lambda *_: None, tmp_path / "here", seconds=3, longest=10)
    # The two of the warm-up are not in it, one more is.
    assert sum(found.step_seconds) == pytest.approx(seconds, abs=1.0)
    if len(pauses) == 2:
        assert found.seconds_per_step == pytest.approx(0.75, rel=0.1)
    else:
        assert found.seconds_per_step == pytest.approx(0.5)


def test_the_time_of_a_step_is_the_mean_of_the_middle():
    def mean(*seconds: float) -> float:
        return StepTimings(step_seconds=list(seconds)).seconds_per_step

    assert mean(2.0) == 2.0
    assert mean(2.0, 4.0) == 3.0
    assert mean(9.0, 1.0, 2.0) == 2.0
    assert mean(*range(20)) == 9.5
    assert mean(100.0, *range(1, 20)) == 10.5  # of 3 … 18


def test_memory_by_kind(tmp_path: Path):
    found = measure_training(make, lambda *_: None, tmp_path / "here", seconds=0.1)
    memory, weights = found.memory, 2 * WIDTH * WIDTH * 4
    assert memory is not None
    assert memory.weights == memory.gradients == weights
    # AdamW's two moments, and its count of steps for each of the two matrices.
    assert memory.optimiser == 2 * weights + 2 * 4
    # Kept for the way back: the input, tanh's result (once, as result and as input) and the
    # output, to be squared.
    assert memory.activations == 3 * ROWS * WIDTH * 4
    assert memory.peak == peak_bytes()
    assert memory.process > 0


def test_a_first_step_that_compiles_is_told_apart(tmp_path: Path, clock: Clock):
    trainer = make(CheckpointStore(tmp_path, 1), clock, pause=0.25)
    loss = trainer.objective.loss

    def compiling(model: Slow, batch: TensorBatch) -> LossParts:
        if not trainer.progress.step:
            clock.sleep(40)
        return loss(model, batch)

    trainer.objective.loss = compiling
    found = time_steps(trainer, 0.1)
    assert found.warm_up_seconds == pytest.approx(40)
    assert found.step_seconds == pytest.approx([0.25] * 3)  # three at the least
    assert not list(tmp_path.iterdir())


def test_steps_too_long_to_wait_for_are_given_up(tmp_path: Path, clock: Clock):
    found = time_steps(make(CheckpointStore(tmp_path, 1), clock, pause=60), 1.0, give_up=5.0)
    assert found.step_seconds == pytest.approx([60])
    assert found.tokens_per_step == ROWS
    assert clock.now == pytest.approx(160)


@pytest.mark.parametrize("frozen", [False, True])
def test_operations_are_those_of_the_products(tmp_path: Path, frozen: bool):
    """Two for each weight and row on the way forward; on the way back two for the weights'
    gradient, where they have one, and two for the input's, where something is below."""
    trainer = make(CheckpointStore(tmp_path, 1))
    trainer.model.first.requires_grad_(not frozen)  # type: ignore[operator, union-attr]
    first = 2 + (0 if frozen else 2)
    second = 2 + 2 + (0 if frozen else 2)
    assert count_flops(trainer) == (first + second) * WIDTH * WIDTH
