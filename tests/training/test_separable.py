"""A batch whose loss compares its rows is taken whole, by however many processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llmctl.errors import UsageError
from llmctl.training.batches import LossParts, Objective, SumAndCount
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

    def rows(self, begin: int, stop: int) -> NoReturn:
        raise AssertionError("it can't be divided")


def batches(step: int) -> Compared:
    plain = numbers(step)
    return Compared(plain.tokens_B, plain.x, plain.y)


def contrastive(model: nn.Module, batch: Compared) -> LossParts:
    """InfoNCE: each row's output is to be nearest to its own target among all of the batch."""
    outputs_B = model.layers(batch.x).squeeze(-1)  # type: ignore[operator]
    nearness_BB = -((outputs_B[:, None] - batch.y) ** 2)
    nll = F.cross_entropy(nearness_BB, torch.arange(len(batch)), reduction="sum")
    return LossParts({"squared_error": SumAndCount(nll, len(batch))})


def trained(folder: Path, **options: object) -> tuple[list[float], list[float]]:
    """The losses of a short training, and a few of the weights behind it."""
    settings: dict[str, Any] = {
        "max_steps": STEPS, "learning_rate": 0.01, "log_every": 1, "precision": "fp32", **options,
    }  # fmt: skip
    with process_group() as world:
        trainer = Trainer(
            Objective(Regression(), contrastive), batches, TrainingConfig(**settings),
            total_steps=STEPS, seed=7, device=torch.device("cpu"), precision="fp32",
            store=CheckpointStore(folder, keep=1), world=world,
        )  # fmt: skip
        losses = [r.values["loss"] for r in trainer.run() if r.kind == "train"]
        weights = trainer.model.state_dict()["layers.0.weight"].flatten().tolist()
        trainer.close()
    return losses, weights


@pytest.mark.distributed
def test_two_processes_do_what_one_does(tmp_path: Path):
    """To the bit: the others' gradients are zeros."""
    alone = trained(tmp_path / "alone")
    assert len(set(alone[0])) == STEPS
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **meeting_at(tmp_path / "store")}
    code = (
        "import json, sys; from pathlib import Path\n"
        "from tests.training.test_separable import trained\n"
        "print(json.dumps(trained(Path(sys.argv[1]))))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "together")],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [tuple(pair) for pair in told] == [alone, alone]


@pytest.mark.parametrize("parts", [2, "auto"])
def test_parts_of_it_are_refused(tmp_path: Path, parts: int | str):
    with pytest.raises(UsageError, match=rf"training\.micro_batch {parts} .* can't be divided"):
        trained(tmp_path, micro_batch=parts)
