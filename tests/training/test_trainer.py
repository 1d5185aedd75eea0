"""The training loop: exact resume, checkpoints, faults."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmctl.errors import DivergedError, InputError
from llmctl.models.spec import Backbone
from llmctl.reporting.reporter import Record
from llmctl.training.batches import LossParts, Objective, SumAndCount, TensorBatch
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.optim.optimiser import build_optimiser
from llmctl.training.trainer import Trainer
from llmctl.training.validation import ValidationInterrupted, evaluate


@dataclass(frozen=True)
class Numbers(TensorBatch):
    x: Tensor
    y: Tensor

    @property
    def num_positions(self) -> int:
        return len(self)

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"squared_error": len(self)}


class Regression(nn.Module):
    """Dropout makes every step draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 1))

    def loss(self, batch: TensorBatch) -> LossParts:
        assert isinstance(batch, Numbers)
        error = (self.layers(batch.x).squeeze(-1) - batch.y) ** 2
        return LossParts({"squared_error": SumAndCount(error.sum(), len(error))})


class Body(Backbone):
    """A backbone of one layer."""

    kind = "encoder"

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.blocks[0](x)


class InLayers(Regression):
    """The same with its matrices where Muon looks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: nn.Module = Body(self.layers)


def numbers(step: int, scale: float = 1.0) -> Numbers:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=generator) * scale
    return Numbers(tokens_B=np.ones(8, dtype=np.int64), x=x, y=x.sum(-1))


def make_trainer(folder: Path, steps: int, **changes: object) -> Trainer:
    config = TrainingConfig(
        max_steps=steps, learning_rate=0.01, log_every=3, checkpoint_every=5, precision="fp32",
        skip_spikes=changes.pop("skip_spikes", 0.0),
        optimiser=changes.pop("optimiser", "adamw"),
    )  # fmt: skip
    model = changes.pop("model", None) or Regression()
    options: dict[str, object] = {
        "total_steps": steps,
        "seed": 7,
        "device": torch.device("cpu"),
        "precision": "fp32",
        "store": CheckpointStore(folder, keep=2),
    }
    batches = changes.pop("batches", numbers)
    return Trainer(Objective(model, type(model).loss), batches, config, **{**options, **changes})  # type: ignore[arg-type]


def losses(trainer: Trainer) -> dict[int, float]:
    return {r.step: r.values["loss"] for r in trainer.run() if r.kind == "train"}


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7, 11])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path, stop_after: int):
    whole = make_trainer(tmp_path / "whole", 12)
    expected = losses(whole)

    first = make_trainer(
        tmp_path / "parts", 12, should_stop=lambda: first.progress.step >= stop_after
    )
    before = losses(first)
    assert first.progress.step == stop_after
    second = make_trainer(tmp_path / "parts", 12)
    checkpoint = CheckpointStore(tmp_path / "parts", 2).load_newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.step == stop_after
    second.restore(checkpoint)
    after = losses(second)

    assert {**before, **after} == expected
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_record_over_a_stop_tells_of_all_its_batches(tmp_path: Path):
    """Its padding too, which isn't the same in each of them."""

    def batches(step: int) -> Numbers:
        batch = numbers(step)
        return Numbers(tokens_B=batch.tokens_B - (np.arange(8) < step % 5), x=batch.x, y=batch.y)

    def padding(trainer: Trainer) -> dict[int, float]:
        return {r.step: r.values["padding"] for r in trainer.run() if r.kind == "train"}

    expected = padding(make_trainer(tmp_path / "whole", 12, batches=batches))
    slots = 3 * numbers(0).num_positions
    assert expected[3] == pytest.approx(1 - (3 * 8 - (0 + 1 + 2)) / slots)
    first = make_trainer(
        tmp_path / "parts", 12, batches=batches, should_stop=lambda: first.progress.step >= 7
    )
    before = padding(first)
    second = make_trainer(tmp_path / "parts", 12, batches=batches)
    checkpoint = CheckpointStore(tmp_path / "parts", 2).load_newest(pytest.fail)
    assert checkpoint is not None
    second.restore(checkpoint)
    assert {**before, **padding(second)} == expected


def test_a_precision_that_was_changed_in_between_is_refused(tmp_path: Path):
    first = make_trainer(tmp_path, 12, should_stop=lambda: first.progress.step >= 7)
    losses(first)
    second = make_trainer(tmp_path, 12, precision="bf16")
    checkpoint = CheckpointStore(tmp_path, 2).load_newest(pytest.fail)
    assert checkpoint is not None
    with pytest.raises(InputError, match="was made in fp32, and the run's manifest says bf16"):
        second.restore(checkpoint)


def test_muons_momentum_is_gone_on_from_too(tmp_path: Path):
    def make(folder: Path, **changes: object) -> Trainer:
        trainer = make_trainer(folder, 12, optimiser="muon", model=InLayers(), **changes)
        assert any(group["muon"] for group in trainer.optimiser.param_groups)
        return trainer

    whole = make(tmp_path / "whole")
    expected = losses(whole)
    first = make(tmp_path / "parts", should_stop=lambda: first.progress.step >= 7)
    before = losses(first)
    second = make(tmp_path / "parts")
    checkpoint = CheckpointStore(tmp_path / "parts", 2).load_newest(pytest.fail)
    assert checkpoint is not None
    second.restore(checkpoint)
    assert {**before, **losses(second)} == expected
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    list(make_trainer(tmp_path, 20).run())
    assert CheckpointStore(tmp_path, 2).steps() == [15, 20]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path):
    list(make_trainer(tmp_path, 10).run())
    weights = tmp_path / "step-00000010" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    warnings: list[str] = []
    checkpoint = CheckpointStore(tmp_path, 2).load_newest(warnings.append)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert len(warnings) == 1
    assert "step-00000010/model.safetensors" in warnings[0]


def test_no_whole_checkpoint_is_an_error_that_names_the_file(tmp_path: Path):
    list(make_trainer(tmp_path, 5).run())
    weights = tmp_path / "step-00000005" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"step-00000005/model\.safetensors has \d+ bytes"):
        CheckpointStore(tmp_path, 2).load_newest(lambda text: None)


def test_a_gradient_that_is_not_finite_skips_the_step(tmp_path: Path):
    def one_bad(step: int) -> Numbers:
        return numbers(step, scale=float("inf") if step == 3 else 1.0)

    records = list(make_trainer(tmp_path, 8, batches=one_bad).run())
    assert [r.step for r in records if r.kind == "skipped"] == [4]
    assert records[-1].kind == "finished"
    assert all(r.values["loss"] == r.values["loss"] for r in records if r.kind == "train")


def test_a_spike_is_left_out_and_training_goes_on(tmp_path: Path):
    def one_spike(step: int) -> Numbers:
        return numbers(step, scale=1e4 if step in (3, 70) else 1.0)

    whole = list(make_trainer(tmp_path / "a", 80, batches=one_spike, skip_spikes=10.0).run())
    # Not the one at the beginning, when no norm is usual yet.
    assert [r.step for r in whole if r.kind == "skipped"] == [71]
    plain = list(make_trainer(tmp_path / "b", 80, batches=one_spike).run())
    assert not [r for r in plain if r.kind == "skipped"]


def test_gradients_that_stay_not_finite_stop_with_the_checkpoint_intact(tmp_path: Path):
    def bad_from_six(step: int) -> Numbers:
        return numbers(step, scale=float("inf") if step >= 6 else 1.0)

    # As a run does, which waits for the write under way.
    with (
        CheckpointStore(tmp_path, keep=2) as store,
        pytest.raises(DivergedError, match=r"training\.learning_rate"),
    ):
        list(make_trainer(tmp_path, 50, batches=bad_from_six, store=store).run())
    checkpoint = CheckpointStore(tmp_path, 2).load_newest(pytest.fail)
    assert checkpoint is not None
    assert all(torch.isfinite(t).all() for t in checkpoint.tensors({})[0].values())


def test_stops_early_and_stays_stopped_after_a_resume(tmp_path: Path):
    values = iter([3.0, 2.0, 2.5, 2.6, 2.7, 1.0])
    options = {"eval_every": 2, "patience": 2}
    trainer = make_trainer(tmp_path, 40, validate=lambda: {"loss": next(values)}, **options)
    assert list(trainer.run())[-1].step == 8
    assert trainer.progress.best_step == 4
    again = make_trainer(tmp_path, 40, validate=lambda: {"loss": 0.0}, **options)
    checkpoint = CheckpointStore(tmp_path, 2).load_newest(pytest.fail)
    assert checkpoint is not None
    again.restore(checkpoint)
    assert [record.kind for record in again.run()] == ["finished"]


def test_first_update_is_adamw_by_hand():
    """One step from zero moments: m̂ = g, v̂ = g², so the update is -lr (g / (|g| + ε) + λ w)."""
    torch.manual_seed(0)
    linear = nn.Linear(2, 3)
    weight, bias = linear.weight, linear.bias
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5, epsilon=1e-6)
    optimiser = build_optimiser(linear, config)
    before = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.randn(3, 2), torch.randn(3)
    optimiser.step()
    signed = [g / (g.abs() + 1e-6) for g in (weight.grad, bias.grad)]
    torch.testing.assert_close(weight.detach(), before[0] * (1 - 0.1 * 0.5) - 0.1 * signed[0])
    torch.testing.assert_close(bias.detach(), before[1] - 0.1 * signed[1])


def test_a_falling_loss_keeps_training_going_though_the_criterion_stands_still(tmp_path: Path):
    values = iter([3.0, 2.0, 1.5, 1.2, 1.1, 1.3, 1.4])
    trainer = make_trainer(
        tmp_path,
        40,
        validate=lambda: {"loss": next(values), "criterion": 0.5},
        eval_every=4,
        patience=2,
    )
    assert list(trainer.run())[-1].step == 28
    assert trainer.progress.best_step == 4


class LossToInfinity(Regression):
    """At steps whose inputs say so the loss is infinite, and its gradient is not."""

    def loss(self, batch: TensorBatch) -> LossParts:
        assert isinstance(batch, Numbers)
        parts = super().loss(batch)
        added = torch.tensor(float("inf") if batch.real_tokens == 9 else 0.0)
        ratio = parts.losses["squared_error"]
        return LossParts({"squared_error": SumAndCount(ratio.total + added, ratio.count)})


def test_a_loss_that_is_not_finite_skips_the_step_whatever_its_gradient(tmp_path: Path):
    def one_bad(step: int) -> Numbers:
        tokens_B = np.ones(8, dtype=np.int64)
        tokens_B[0] += step == 3
        return replace(numbers(step), tokens_B=tokens_B)

    trainer = make_trainer(tmp_path, 8, batches=one_bad, model=LossToInfinity())
    records = list(trainer.run())
    assert [r.step for r in records if r.kind == "skipped"] == [4]
    assert all(math.isfinite(r.values["loss"]) for r in records if r.kind == "train")


def test_a_validation_cut_short_by_a_stop_is_made_up_for(tmp_path: Path):
    """The log has it once, and what is lost of the run is not even a step."""

    def make(folder: Path, stop_at: int | None = None) -> Trainer:
        looked = 0

        def should_stop() -> bool:
            nonlocal looked
            looked += trainer.progress.validation_due and trainer.progress.step == stop_at
            return looked > 2

        def validate() -> dict[str, float]:
            device = torch.device("cpu")
            return evaluate(trainer.objective, numbers, 4, device=device, should_stop=should_stop)

        trainer = make_trainer(
            folder, 12, validate=validate, eval_every=6, patience=1, should_stop=should_stop
        )
        return trainer

    def looks(records: list[Record]) -> list[Record]:
        return [r for r in records if r.kind == "validation"]

    whole = make(tmp_path / "whole")
    expected = list(whole.run())
    assert [r.step for r in looks(expected)] == [6, 12]
    for stop_at in (6, 12):
        folder = tmp_path / str(stop_at)
        first = list(make(folder, stop_at).run())
        assert first[-1] == Record("stopped", stop_at)
        second = make(folder)
        checkpoint = CheckpointStore(folder, 2).load_newest(pytest.fail)
        assert checkpoint is not None
        assert checkpoint.step == stop_at
        second.restore(checkpoint)
        after = list(second.run())
        assert looks(first) + looks(after) == looks(expected)
        assert second.progress.best == whole.progress.best
        assert second.progress.best_step == whole.progress.best_step
        for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_stopped_again_in_the_validation_that_is_made_up_for(tmp_path: Path):
    def cut(*_: object) -> dict[str, float]:
        raise ValidationInterrupted

    first = make_trainer(tmp_path, 12, validate=cut, eval_every=6)
    first._should_stop = lambda: first.progress.step == 6
    assert list(first.run())[-1] == Record("stopped", 6)
    second = make_trainer(tmp_path, 12, validate=cut, eval_every=6, should_stop=lambda: True)
    checkpoint = CheckpointStore(tmp_path, 2).load_newest(pytest.fail)
    assert checkpoint is not None
    second.restore(checkpoint)
    assert list(second.run()) == [Record("stopped", 6)]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_training_changes_the_weights(tmp_path: Path, steps: int):
    """The warm-up begins with a rate of 0, which would be all that a step alone has."""
    trainer = make_trainer(tmp_path, steps)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    rates = [r.values["learning_rate"] for r in trainer.run() if r.kind == "train"]
    assert rates[-1] > 0
    after = list(trainer.model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
