"""A loss that compares the rows of a batch: in parts, by several processes, the same gradient."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.training.batches import ComparedLoss, LossParts, Objective, SumAndCount
from llmctl.training.checkpoints import CheckpointStore
from llmctl.training.config import TrainingConfig
from llmctl.training.distributed.meeting import meeting_at
from llmctl.training.distributed.processes import process_group
from llmctl.training.trainer import Trainer
from tests.training.test_trainer import Numbers, Regression, numbers

STEPS = 4


@dataclass(frozen=True)
class Compared(Numbers):
    """Numbers of which each is told from the others."""

    separable = False

    @property
    def loss_denominators(self) -> dict[str, int]:
        return {"nll": len(self)}


def batches(step: int) -> Compared:
    plain = numbers(step)
    return Compared(plain.tokens_B, plain.x, plain.y)


class Nearest(ComparedLoss):
    """InfoNCE: each row's output is to be nearest to its own target among all of the batch."""

    def encode(self, model: Any, batch: Any) -> Tensor:
        return model.layers(batch.x)

    def compare(self, encoded: Tensor, batch: Any) -> LossParts:
        nearness_BB = -((encoded - batch.y) ** 2)
        own_B = torch.arange(len(batch))
        nll = F.cross_entropy(nearness_BB, own_B, reduction="sum")
        right = (nearness_BB.argmax(1) == own_B).sum()
        return LossParts(
            {"nll": SumAndCount(nll, len(batch))}, {"accuracy": SumAndCount(right, len(batch))}
        )


class Undropped(Nearest):
    """The same without dropout, which is drawn for each part."""

    def encode(self, model: Any, batch: Any) -> Tensor:
        return model.layers[2](model.layers[0](batch.x))


def trainer_for(folder: Path, loss: ComparedLoss, world: Any, **options: object) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": STEPS, "learning_rate": 0.01, "log_every": 1, "precision": "fp32", **options,
    }  # fmt: skip
    return Trainer(
        Objective(Regression(), loss), batches, TrainingConfig(**settings), total_steps=STEPS,
        seed=7, device=torch.device("cpu"), precision="fp32", store=CheckpointStore(folder, keep=1),
        world=world,
    )  # fmt: skip


def trained(folder: Path, **options: object) -> tuple[list[dict[str, float]], list[float]]:
    """Figures of a short training, and a few of the weights behind it."""
    with process_group() as world:
        trainer = trainer_for(folder, Undropped(), world, **options)
        figures = [
            {name: r.values[name] for name in ("loss", "nll", "accuracy")}
            for r in trainer.run()
            if r.kind == "train"
        ]
        flat = trainer.model.state_dict()["layers.0.weight"].flatten().tolist()
        trainer.close()
    return figures, flat


def gradient_of(folder: Path, loss: ComparedLoss, **options: object) -> dict[str, Tensor]:
    with process_group() as world:
        trainer = trainer_for(folder, loss, world, **options)
        trainer.model.train()
        trainer._prepare(count_flops=False)
        parts = trainer._local_micro_batches(0)
        assert parts.whole is not None
        trainer._compared_gradient(parts, parts.whole)
        found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}  # type: ignore[union-attr]
        trainer.close()
    return found


def test_the_gradient_is_that_of_autograd_over_the_whole_batch(tmp_path: Path):
    model, batch = Regression(), batches(0)
    Undropped()(model, batch).total.backward()
    found = gradient_of(tmp_path, Undropped())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_cached_gradients_are_the_plain_ones(tmp_path: Path, parts: int):
    plain = gradient_of(tmp_path / "plain", Undropped())
    cached = gradient_of(tmp_path / "cached", Undropped(), micro_batch=parts)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(cached[name], gradient)


def test_a_part_that_is_computed_again_drops_the_same(tmp_path: Path):
    """Against autograd over parts whose dropout is drawn as theirs is: had the second pass drawn
    another, the gradient would be of a loss that nobody computed."""
    cached = gradient_of(tmp_path / "cached", Nearest(), micro_batch=2)

    class Whole(Nearest):
        """The parts encoded one after another in one graph, as ``Stepper`` seeds each."""

        def encode(self, model: Any, batch: Any) -> Tensor:
            from llmctl.data.random import key_of

            parts = []
            for first in range(0, len(batch), 2):
                torch.manual_seed(key_of(7, "step", 0, first))
                parts.append(super().encode(model, batch.rows(first, first + 2)))
            return torch.cat(parts)

    assert len(batches(0)) % 2 == 0
    model = Regression().train()
    Whole()(model, batches(0)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(cached[name], parameter.grad)


def test_rows_that_fit_are_found(tmp_path: Path):
    figures, weights = trained(tmp_path / "auto", micro_batch="auto")
    assert (figures, weights) == trained(tmp_path / "all")


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "options"), [(2, {}), (2, {"micro_batch": 2}), (3, {})])
def test_processes_compare_all_rows(tmp_path: Path, size: int, options: dict[str, Any]):
    alone = trained(tmp_path / "alone")
    assert len({figure["loss"] for figure in alone[0]}) == STEPS
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), **meeting_at(tmp_path / "s")}
    code = (
        "import json, sys; from pathlib import Path\n"
        "from tests.training.test_compared import trained\n"
        "print(json.dumps(trained(Path(sys.argv[1]), **json.loads(sys.argv[2]))))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "together"), json.dumps(options)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0] * size
    figures, weights = told[0]
    for found, expected in zip(figures, alone[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(torch.tensor(weights), torch.tensor(alone[1]))
